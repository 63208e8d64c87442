"""Several ranks with gloo: their state is bit-equal on all ranks, and equals that of one process with the whole batch.

Four processes are started once. The first 2, 3 and 4 of them form groups of 2, 3 and 4 ranks, one after the other. Each
rank takes its share of the batch.
"""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from easydict import EasyDict
from gloo_ranks import on_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from config import load_config
from heads import build_head
from train import batchnorm
from utils.distributed import (
    Agreement,
    all_gather,
    all_gather_rows,
    broadcast_buffers,
    from_rank_0,
    mean_over_ranks,
    rank,
    world_size,
)
from utils.errors import InputError

WORLDS = (2, 3, 4)
VERSIONS = ("progress", "confidence")  # of the geometry term: those that depend on the whole batch
CLASSES, SIZE = 20, 32
# Every rank of every split has classes 3 and 7, some have 11, and some have a class twice.
LABELS = torch.tensor([3, 7, 3, 7, 11, 3, 3, 7, 11, 7, 3, 0])


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher embeddings [12, 32] that resemble each other."""
    generator = torch.Generator().manual_seed(step)
    teacher = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(99))[LABELS]
    teacher = 5 * (teacher + 0.5 * torch.randn(12, SIZE, generator=generator))
    return 4 * (teacher / 5 + 0.7 * torch.randn(12, SIZE, generator=generator)), teacher


def settings() -> EasyDict:
    """AdaFace with its geometry term, as published."""
    cfg = load_config(overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}"])
    assert cfg.loss == "AdaFace" and cfg.use_geom_margin
    return cfg


class LoggedOperations(TorchDispatchMode):
    """Collects the names of torch's operations in `names`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation._schema.name)
        return operation(*args, **(kwargs or {}))


def collectives_of_a_step(*overrides: str) -> int:
    """The number of collectives of one training step of the head."""
    head = build_head(
        load_config(overrides=[*overrides, "dataset=custom", f"num_classes={CLASSES}", "embedding_size=32"])
    )
    student, teacher = global_batch(0)
    with mock.patch("torch.distributed.all_gather", wraps=dist.all_gather) as gather:
        head(student.requires_grad_(), teacher, LABELS).loss.backward()
    return gather.call_count


def head_steps(cfg: EasyDict, part: slice) -> list[dict[str, torch.Tensor]]:
    """Run two steps of the head on a part of the global batch. Returns its state and results after each step."""
    head, steps = build_head(cfg), []
    head.set_epoch(0.7)
    for step in (0, 1):
        student, teacher = (embeddings[part].clone() for embeddings in global_batch(step))
        student.requires_grad_()
        out = head(student, teacher, LABELS[part])
        out.loss.backward()
        state = {key: value.clone() for key, value in head.state_dict().items()}
        steps.append({**state, "loss": out.loss.detach(), "gradient": student.grad})
    return steps


def normalised_network() -> nn.Sequential:
    """A network with both kinds of BatchNorm, with and without trained weights."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.PReLU(5), nn.Flatten(), nn.Linear(80, 4),
        nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, momentum=0.3),
    )  # fmt: skip
    network[1].weight.data.uniform_(0.5, 1.5)
    network[1].bias.data.normal_()
    return network


def batchnorm_steps(network: nn.Module, part: slice) -> dict[str, torch.Tensor]:
    """Two forward and backward passes in training mode and one forward pass in eval mode."""
    result = {}
    for step in (0, 1):
        generator = torch.Generator().manual_seed(step)
        images = 2 * torch.randn(12, 3, 6, 6, generator=generator) + 1
        factors = torch.randn(12, 4, generator=generator)
        images = images[part].requires_grad_()
        network.zero_grad()
        outputs = network.train()(images)
        (outputs * factors[part]).sum().backward()
        result |= {f"outputs{step}": outputs.detach(), f"inputs_gradient{step}": images.grad}
        result |= {f"gradient{step}.{name}": weight.grad.clone() for name, weight in network.named_parameters()}
        result |= {f"state{step}.{key}": value.clone() for key, value in network.state_dict().items()}
    result["eval"] = network.eval()(images).detach()
    return result


def collectives() -> dict:
    """The results of all collectives of utils.distributed on this rank."""
    buffers = nn.BatchNorm1d(3)
    buffers.running_mean.fill_(rank() + 5)
    broadcast_buffers(buffers)
    requests = []
    for requested in (None, 0, 1):
        agreement = Agreement()
        agreement.post(*(number == requested and rank() == world_size() - 1 for number in (0, 1)))
        requests.append(agreement.read())
    return {
        "gathered": all_gather(torch.full((2, 1), float(rank()), requires_grad=True)),
        "rows": all_gather_rows(
            torch.tensor([rank(), -7]),
            torch.full((2, 2, 3), rank() + 0.1, dtype=torch.float64),
            torch.tensor([True, False]),
        ),
        "means": mean_over_ranks({"a": torch.tensor(float(rank())), "b": torch.tensor(2.0)}),
        "from_rank_0": from_rank_0({"rank": rank()}),
        "buffers": buffers.running_mean,
        "requests": requests,
    }


def results_on_rank(values: dict, header: str) -> dict:
    """What this rank computes. values: the settings; header: a file with fixed centers."""
    share = 12 // world_size()
    part = slice(rank() * share, (rank() + 1) * share)
    result = {"head": head_steps(EasyDict(values), part), "collectives": collectives()}
    result |= {version: head_steps(EasyDict(values, geom_margin=version), part) for version in VERSIONS}
    if world_size() == 2:
        fixed = ["centers=fixed", f"pretrained_teacher_header_path={header}"]
        result["collectives of a step"] = [
            collectives_of_a_step(f"loss={loss}", *more) for more in ([], fixed) for loss in ("AdaFace", "ArcFace")
        ]
        result["batchnorm"] = batchnorm_steps(
            batchnorm.replace_batch_norms(normalised_network(), synchronised=True), part
        )
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, list[dict]]:
    """Number of ranks -> the results of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({"kernel": torch.randn(SIZE, CLASSES)}, folder / "header.pth")
    return on_ranks(results_on_rank, WORLDS, folder, dict(settings()), str(folder / "header.pth"))


@pytest.fixture(scope="module")
def one_process() -> list[dict[str, torch.Tensor]]:
    """The same two steps with the whole batch in one process."""
    return head_steps(settings(), slice(0, 12))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_geometry_term_that_depends_on_the_batch_does_not_depend_on_the_number_of_ranks(results, world, version):
    whole = head_steps(EasyDict(settings(), geom_margin=version), slice(0, 12))
    for step, wanted in enumerate(whole):
        gradient = torch.cat([result[version][step]["gradient"] for result in results[world]]) / world
        torch.testing.assert_close(gradient, wanted["gradient"], rtol=1e-4, atol=1e-5)
    adaptive = head_steps(settings(), slice(0, 12))
    assert (whole[1]["gradient"] - adaptive[1]["gradient"]).abs().max() > 1e-3


@pytest.mark.parametrize("world", WORLDS)
def test_centers_and_norm_statistics_are_bit_equal_on_all_ranks(results, world):
    shared = [key for key in results[world][0]["head"][0] if key not in ("loss", "gradient")]
    assert len(shared) == 3  # centers, mean and deviation of the norms
    for step in (0, 1):
        for other in results[world][1:]:
            for key in shared:
                assert torch.equal(results[world][0]["head"][step][key], other["head"][step][key]), key


@pytest.mark.parametrize("world", WORLDS)
def test_centers_and_norm_statistics_do_not_depend_on_the_number_of_ranks(results, one_process, world):
    assert not torch.equal(one_process[0]["centers"], one_process[1]["centers"])
    for step in (0, 1):
        found, wanted = results[world][0]["head"][step], one_process[step]
        for key in wanted.keys() - {"loss", "gradient"}:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("world", WORLDS)
def test_the_mean_loss_and_the_gradients_of_the_ranks_equal_those_of_the_whole_batch(results, one_process, world):
    for step in (0, 1):
        parts = [result["head"][step] for result in results[world]]
        loss = torch.stack([part["loss"] for part in parts]).mean()
        torch.testing.assert_close(loss, one_process[step]["loss"], rtol=1e-5, atol=0)
        gradient = torch.cat([part["gradient"] for part in parts]) / world
        torch.testing.assert_close(gradient, one_process[step]["gradient"], rtol=1e-4, atol=1e-5)


def test_a_step_of_the_head_needs_one_collective(results):
    """Without moving centers, AdaFace shares its norms, and ArcFace shares nothing."""
    for result in results[2]:
        assert result["collectives of a step"] == [1, 1, 1, 0]


def test_synchronised_batchnorm_equals_one_process_with_the_whole_batch(results):
    wanted = batchnorm_steps(normalised_network(), slice(0, 12))
    first, second = (result["batchnorm"] for result in results[2])
    assert set(first) == set(wanted)  # also the key names of the state
    for key, value in wanted.items():
        if key.startswith("gradient"):  # gradients of a sum over the batch: those of the ranks add up
            found = first[key] + second[key]
        elif key.startswith("state"):
            assert torch.equal(first[key], second[key]), key
            found = first[key]
        else:
            found = torch.cat([first[key], second[key]])[-len(value) :]
        scale = value.double().abs().max().item()
        torch.testing.assert_close(
            found, value, rtol=1e-5, atol=1e-5 * max(1.0, scale), msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("synchronised", [True, False])
def test_in_one_process_the_layers_give_the_results_of_torch_bit_for_bit(synchronised):
    network = batchnorm.replace_batch_norms(normalised_network(), synchronised)
    found, wanted = (batchnorm_steps(net, slice(0, 12)) for net in (network, normalised_network()))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert wanted["state1.1.num_batches_tracked"] == 2


def test_a_forward_pass_counts_its_batch_in_one_operation():
    network = batchnorm.replace_batch_norms(normalised_network(), synchronised=False)
    with LoggedOperations() as operations:
        network(torch.randn(12, 3, 6, 6))
    assert [name for name in operations.names if "add" in name and "addmm" not in name] == ["aten::_foreach_add_"]


class NormAndActivation(nn.BatchNorm2d):
    pass


def test_layers_that_do_more_or_need_their_counter_stay_as_they_are():
    network = nn.Sequential(NormAndActivation(3), nn.BatchNorm2d(3, momentum=None), nn.ReLU())
    layers = list(network)
    assert list(batchnorm.replace_batch_norms(network, synchronised=False)) == layers


@pytest.mark.parametrize("layer", [NormAndActivation(3), nn.BatchNorm2d(3, momentum=None)])
def test_statistics_that_would_stay_those_of_a_rank_are_refused(layer):
    with mock.patch("train.batchnorm.world_size", lambda: 2):
        with pytest.raises(InputError, match=f"sync_bn = True: .*{type(layer).__name__}"):
            batchnorm.replace_batch_norms(nn.Sequential(layer), synchronised=True)
        batchnorm.replace_batch_norms(nn.Sequential(layer), synchronised=False)
        batchnorm.replace_batch_norms(nn.Sequential(nn.BatchNorm2d(3)), synchronised=True)


@pytest.mark.parametrize("world", WORLDS)
def test_collectives_give_every_rank_the_same_values(results, world):
    for result in (part["collectives"] for part in results[world]):
        assert result["gathered"].tolist() == [[float(r)] for r in range(world) for _ in range(2)]
        assert not result["gathered"].requires_grad
        labels, numbers, flags = result["rows"]
        assert labels.tolist() == [value for r in range(world) for value in (r, -7)]
        assert numbers.shape == (2 * world, 2, 3) and numbers[:, 1, 2].tolist() == [
            r // 2 + 0.1 for r in range(2 * world)
        ]
        assert flags.tolist() == world * [True, False]
        assert result["means"] == {"a": (world - 1) / 2, "b": 2.0}
        assert result["from_rank_0"] == {"rank": 0}
        assert result["buffers"].tolist() == [5, 5, 5]
        assert result["requests"] == [[False, False], [True, False], [False, True]]


def test_collectives_do_nothing_in_one_process():
    result = collectives()
    assert result["gathered"].tolist() == [[0.0], [0.0]] and result["means"] == {"a": 0.0, "b": 2.0}
    assert result["requests"] == [[False, False], [True, False], [False, True]] and result["from_rank_0"] == {"rank": 0}
