"""Copies of batches to a GPU: straight from the workers' memory, which is pinned once and not reused too early."""

import gc
import multiprocessing
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from numbered_images import Numbers

from data import batch_memory
from data.batch_memory import copy_ahead
from data.loader import GlobalOrder, TrainingLoader

CPU = torch.device("cpu")


class Stream:
    """A stream of a GPU that does not exist. Tensors that are copied to it have no memory.

    finished: whether the copies are finished as soon as they are started, or never.
    """

    device = torch.device("meta")

    def __init__(self, finished: bool = True) -> None:
        self.finished = finished

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(query=lambda: self.finished)


@pytest.fixture
def copied_from(monkeypatch) -> list[int]:
    """The address of the images of each batch that `copy_ahead` copies to a Stream."""
    addresses = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4:
            addresses.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(batch_memory, "_wait_for_copy", lambda tensors, copied: tensors)
    return addresses


class Cuda:
    """Stands in for CUDA's runtime, which can pin memory. `pinned` has the size of each pinned block by its address."""

    cudaError = SimpleNamespace(success=0)

    def __init__(self, answer: int = 0) -> None:
        self.answer, self.pinned, self.workers = answer, {}, []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.workers.append(len(multiprocessing.active_children()))
        if self.answer == 0:
            self.pinned[address] = size
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("finished", [True, False])
def test_memory_is_not_reused_before_its_copy_to_the_gpu_is_finished(monkeypatch, copied_from, num_workers, finished):
    monkeypatch.setattr(torch.cuda, "cudart", Cuda)
    order = GlobalOrder(160, 8, seed=4)
    source = TrainingLoader(Numbers(160), order, num_workers, CPU)
    slots = source._slots
    for epoch in (0, 1):  # copies may be unfinished when an epoch ends
        order.start_at(epoch, 0)
        copies = list(copy_ahead(source.read(), slots, Stream(finished)))
        assert len(copies) == 20 and all(images.is_meta and images.shape == (8, 112, 112, 3) for images, *_ in copies)
    ends = slots.memory.data_ptr(), slots.memory.data_ptr() + slots.memory.nbytes
    in_slots = [address for address in copied_from if ends[0] <= address < ends[1]]
    if finished:
        assert len(in_slots) == 40 and len(set(in_slots)) <= 2 * num_workers + 4
    else:  # each slot once; then the workers allocate memory
        assert len(in_slots) == len(set(in_slots)) == 2 * num_workers + 4


def test_the_slots_are_pinned_once_when_the_workers_run_and_until_the_loader_is_gone(monkeypatch, copied_from):
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    source = TrainingLoader(Numbers(160), GlobalOrder(160, 8, seed=4), 2, CPU)
    memory = source._slots.memory
    for _ in (0, 1):
        list(copy_ahead(source.read(), source._slots, Stream()))
    assert cuda.workers == [2] and cuda.pinned == {memory.data_ptr(): memory.nbytes}
    del source
    gc.collect()
    assert not cuda.pinned


def test_training_goes_on_if_cuda_does_not_pin_the_slots(monkeypatch, copied_from):
    """CUDA reports an error again when the next kernel is started."""
    cuda, reported = Cuda(answer=2), []

    def start_kernel(*size: int, device: str) -> None:
        reported.append(device)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch, "zeros", start_kernel)
    source = TrainingLoader(Numbers(160), GlobalOrder(160, 8, seed=4), 0, CPU)
    assert len(list(copy_ahead(source.read(), source._slots, Stream()))) == 20 == len(copied_from)
    assert reported == ["cuda"]
    del source
    gc.collect()
