"""Memory for batches: shared memory from the worker processes, and pinned memory to the GPU."""

import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from data.images import SIZE


class SharedSlots:
    """Memory for batches of images, shared with the workers. Iterating yields (slot, plan) for each of `plans`.

    A slot is the memory of one batch. It is reused as soon as nothing refers to the tensor of its batch, because new
    memory would take as much time as decoding. If no slot is free, `slot` is None and the worker allocates memory.
    Once the slots are pinned, a GPU copies straight from them.
    """

    def __init__(self, plans: Sampler, batch_size: int, num_workers: int) -> None:
        self.plans = plans
        # Two on the way to each worker, one received, one in use, one about to be freed, one being copied to the GPU.
        count = 2 * num_workers + 4
        # Memory that forks share. It does not come from /dev/shm, which is small in containers.
        shared = mmap.mmap(-1, count * batch_size * SIZE * SIZE * 3)
        self.memory = torch.frombuffer(shared, dtype=torch.uint8).view(count, batch_size, SIZE, SIZE, 3)
        self._free, self._sent = list(range(count)), set[int]()
        self._copying = deque[tuple[torch.cuda.Event, list[Tensor | None]]]()
        self._pin_tried = False

    def __len__(self) -> int:
        return len(self.plans)

    def __iter__(self) -> Iterator[tuple[int | None, Any]]:
        self._free.extend(self._sent)  # slots of an earlier iteration that was not finished
        self._sent.clear()
        for plan in self.plans:
            while self._copying and self._copying[0][0].query():
                self._copying.popleft()
            slot = self._free.pop() if self._free else None
            if slot is not None:
                self._sent.add(slot)
            yield slot, plan

    def images(self, slot: int) -> Tensor:
        """The images that a worker has read into `slot`."""
        self._sent.remove(slot)
        images = self.memory[slot].numpy()
        weakref.finalize(images, self._free.append, slot).atexit = False
        return torch.from_numpy(images)  # this tensor and all its views keep the array alive

    def pin(self) -> None:
        """Pin the slots, so that the GPU can copy from them. Further calls do nothing.

        Call it once the workers run: a worker that is forked later might not share the pinned pages. If CUDA refuses,
        the slots stay as they are, and `Tensor.pin_memory` then copies each batch to pinned memory.
        """
        if self._pin_tried:
            return
        self._pin_tried = True
        cuda, address = torch.cuda.cudart(), self.memory.data_ptr()
        if cuda.cudaHostRegister(address, self.memory.nbytes, 0) == cuda.cudaError.success:
            weakref.finalize(self, cuda.cudaHostUnregister, address).atexit = False
        else:
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # the next CUDA call reports the error once more

    def keep(self, tensors: list[Tensor | None], copied: torch.cuda.Event) -> None:
        """Keep the tensors, and so the slot of their images, until their copies to the GPU are done."""
        self._copying.append((copied, tensors))


def copy_ahead(
    batches: Iterator[list[Tensor | None]], slots: SharedSlots, stream: torch.cuda.Stream
) -> Iterator[list[Tensor | None]]:
    """Copy batches, whose images are in `slots`, to the GPU on `stream`: the next one while the current one is used."""
    ahead = None
    for tensors in batches:
        slots.pin()
        with torch.cuda.stream(stream):
            copies = [  # pin_memory returns images in pinned slots as they are
                None if tensor is None else tensor.pin_memory().to(stream.device, non_blocking=True)
                for tensor in tensors
            ]
            event = stream.record_event()
        slots.keep(tensors, event)
        if ahead is not None:
            yield _wait_for_copy(*ahead)
        ahead = copies, event
    if ahead is not None:
        yield _wait_for_copy(*ahead)


def _wait_for_copy(tensors: list[Tensor | None], copied: torch.cuda.Event) -> list[Tensor | None]:
    """Make the current stream wait for the copy. The memory is not reused before that stream has finished with it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in tensors:
        if tensor is not None:
            tensor.record_stream(current)
    return tensors
