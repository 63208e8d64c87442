"""Key names of MobileFaceNet in other code bases, and how to fold the scale and offset of their last BatchNorm."""

from torch import Tensor

# The BatchNorm after the linear layer has a scale and an offset there: key -> a key of this network with its shape.
FOLDED = dict.fromkeys(("output_layer.bn.weight", "output_layer.bn.bias"), "output_layer.bn.running_mean")
_EPS = 1e-5  # of that BatchNorm, in all these code bases

_ARCFACE_TORCH_STAGES = {
    "conv1": "layers.0", "conv2_dw": "layers.1", "conv_23": "layers.2", "conv_3": "layers.3", "conv_34": "layers.4",
    "conv_4": "layers.5", "conv_45": "layers.6", "conv_5": "layers.7", "conv_6_sep": "conv_sep",
    "output_layer": "features",
}  # fmt: skip
_ARCFACE_TORCH_LAYERS = {
    "model": "layers", "conv": "layers.0", "conv_dw": "layers.1", "project": "layers.2", "bn": "layers.1",
    "prelu": "layers.2", "conv_6_dw": "layers.0", "linear": "layers.2",
}  # fmt: skip


def _arcface_torch(key: str) -> str:
    stage, *layers = key.replace("output_layer.bn.", "output_layer.layers.3.").split(".")
    return ".".join([_ARCFACE_TORCH_STAGES[stage], *(_ARCFACE_TORCH_LAYERS.get(layer, layer) for layer in layers)])


# Code base -> function from a key of this network to the key there.
OTHER_NAMES = {
    "InsightFace_Pytorch (TreB1eN)": lambda key: key.removeprefix("output_layer."),
    "arcface_torch": _arcface_torch,
}


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the keys of FOLDED: scale and offset go into the linear layer and the running mean.

    In eval mode the embeddings stay the same.
    """
    state = dict(state)
    scale, offset = (state.pop(key).double() for key in FOLDED)
    linear, mean, variance = (
        state[f"output_layer.{key}"].double() for key in ("linear.weight", "bn.running_mean", "bn.running_var")
    )
    state["output_layer.linear.weight"] = (scale[:, None] * linear).float()
    state["output_layer.bn.running_mean"] = (scale * mean - offset * (variance + _EPS).sqrt()).float()
    return state
