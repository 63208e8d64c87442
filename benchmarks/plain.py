"""A plain implementation of the same training, for comparison. Public code of this field is similar.

Networks compute in float32 and in NCHW memory format. The head normalises all centers in every step, holds the logits
of the whole batch, and computes a gradient for the centers although nothing trains them. Images are decoded one per
call, flipped and scaled on the CPU, and collated. The loss is read in every step.
"""

import cv2
import torch
from easydict import EasyDict
from torch import Tensor, nn

from backbones import build_backbone
from data.dataset import RecordDataset
from heads import build_head
from heads.head import AdaDistillHead, MarginSoftmax


def make_plain(head: AdaDistillHead) -> AdaDistillHead:
    """Make the head use the plain softmax. Tests check that loss and gradient stay the same."""
    head.softmax, head.unit_centers = _PlainSoftmax(head.softmax.margin, head.softmax.s), _NoUnitCenters()
    return head


class _PlainSoftmax(MarginSoftmax):
    def by_blocks(
        self,
        f_s: Tensor,
        norm: Tensor,
        norms: Tensor,
        centers: Tensor,
        unit_centers: None,
        labels: Tensor,
        geo: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return self(f_s, centers.detach().requires_grad_(), labels, geo)


class _NoUnitCenters:
    def get(self, centers: Tensor) -> None:
        return None

    def update_rows(self, centers: Tensor, labels: Tensor) -> None:
        pass


class PlainImages(torch.utils.data.Dataset):
    """Images and labels: float32 [3, 112, 112] in [-1, 1], flipped with probability 0.5, and an int."""

    def __init__(self, dataset: RecordDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self.dataset.read_image(position)
        if torch.rand(1) < 0.5:
            image = cv2.flip(image, 1)
        return (torch.from_numpy(image).permute(2, 0, 1).float() - 127.5) / 127.5, label


class PlainStep:
    """A training step: step(images [B, 3, 112, 112], labels [B], embeddings [B, D] of the teacher or None) -> the loss.

    teacher: the network on the device, which computes the embeddings; None if the embeddings are given.
    """

    def __init__(self, cfg: EasyDict, device: torch.device, teacher: nn.Module | None) -> None:
        self.cfg, self.teacher = cfg, teacher
        self.student, self.head = build_backbone(cfg).to(device), make_plain(build_head(cfg)).to(device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=1e-3, momentum=cfg.momentum, weight_decay=cfg.weight_decay
        )

    def __call__(self, images: Tensor, labels: Tensor, embeddings: Tensor | None) -> float:
        if self.teacher is not None:
            with torch.no_grad():
                embeddings = self.teacher(images)
        loss = self.head(self.student(images), embeddings, labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.cfg.clip_grad_norm)
        self.optimizer.step()
        return loss.item()
