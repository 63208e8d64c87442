"""Run a network on the CPU in torch, onnxruntime or OpenVINO, and compare their speed."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import onnxruntime
import torch
from torch import nn
from tqdm import tqdm

from data.bin_set import VerificationSet
from utils.packages import missing_packages

Run = Callable[[np.ndarray], np.ndarray]  # float32 RGB pixels [N, 3, 112, 112] -> embeddings [N, D]
Key = TypeVar("Key", bound=Hashable)
BATCH = 32  # of embedding


def in_onnxruntime(model: bytes, threads: int = 0) -> Run:
    """threads: 0 for one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Otherwise, threads that wait for work slow down what is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def has_openvino() -> bool:
    return not missing_packages("openvino")


def in_openvino(model: bytes, threads: int, bfloat16: bool = False) -> Run:
    """bfloat16: compute in bfloat16 what is not int8; else in float32."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
    }
    request = core.compile_model(core.read_model(model, b""), "CPU", settings).create_infer_request()
    return lambda pixels: request.infer({0: pixels})[0].copy()


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def in_torch(network: nn.Module, threads: int, dtype: torch.dtype = torch.float32) -> Run:
    """network: takes images in [-1, 1], in eval mode. dtype: of its computations, by autocast."""

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return network((torch.from_numpy(pixels) - 127.5) / 127.5).float().numpy()

    return run


def time_in_turns(runs: Mapping[Key, Run], pixels: np.ndarray, rounds: int) -> dict[Key, np.ndarray]:
    """Milliseconds of each call, [rounds]. Every round calls each of `runs` once, so that all suffer alike from what
    else the machine does."""
    for run in runs.values():
        run(pixels)
    times = {key: np.empty(rounds) for key in runs}
    for number in range(rounds):
        for key, run in runs.items():
            start = time.perf_counter()
            run(pixels)
            times[key][number] = 1000 * (time.perf_counter() - start)
    return times


def pixels_of(images: VerificationSet, positions: np.ndarray) -> np.ndarray:
    """float32 RGB [N, 3, 112, 112], 0 to 255."""
    return images[positions].permute(0, 3, 1, 2).float().contiguous().numpy()


def embed_set(run: Run, images: VerificationSet, title: str) -> np.ndarray:
    """The embeddings of all images of a set, float32 [n, D], without flip."""
    starts = tqdm(range(0, len(images), BATCH), desc=title, leave=False)
    batches = (np.arange(start, min(start + BATCH, len(images))) for start in starts)
    return np.concatenate([run(pixels_of(images, positions)) for positions in batches])
