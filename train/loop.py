"""The training loop. It does not know the method: a task gives a loss and named values, the loop does the rest."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.profiler import record_function

from config import dump_config
from eval.protocols import due, evaluate, flat
from eval.results import screen
from heads import HeadOutput
from train.schedules import learning_rate
from train.step_profile import StepProfile
from train.tasks import Task, step_input
from utils import checkpoint
from utils.augment import DRAWS, Augmentation, probabilities
from utils.checkpoint import Checkpoint, CheckpointError
from utils.dataset import FaceDataset
from utils.distributed import (
    Agreement,
    barrier,
    broadcast_buffers,
    from_rank_0,
    mean_over_ranks,
    on_rank_0,
    rank,
    world_size,
)
from utils.errors import InputError
from utils.files import make_writable_folder, written_whole
from utils.loader import Batches, GlobalOrder, TrainingBatch
from utils.plots import save_curves, save_preview
from utils.precision import compute_type
from utils.run_log import Rate, RunLog, describe_run


class TrainingError(InputError):
    """Training cannot go on; the message says at which step, and where to look."""


class Trainer:
    """One run: `run()` trains from where the config says to the end, and leaves checkpoints, logs and curves."""

    def __init__(self, cfg: EasyDict, task: Task, dataset: FaceDataset, device: torch.device) -> None:
        self.cfg, self.task, self.dataset, self.device = cfg, task, dataset, device
        self.output = Path(cfg.output)
        self.dtype = compute_type(cfg.dtype, device)
        self.total_batch = cfg.batch_size * world_size() * cfg.accumulate_steps
        self.steps_per_epoch = len(dataset) // self.total_batch
        if cfg.batch_size * (world_size() if cfg.sync_bn else 1) < 2:
            raise InputError(
                "batch_size = 1: BatchNorm needs two images; raise it, or set sync_bn=True on several ranks"
            )
        if self.steps_per_epoch == 0:
            raise InputError(f"a batch of {self.total_batch} from {len(dataset)} images: lower batch_size")
        self.total_steps = min(cfg.num_epoch * self.steps_per_epoch, cfg.max_steps or sys.maxsize)
        self.parameters = [p for module in (task.student, task.head) for p in module.parameters() if p.requires_grad]
        # A margin softmax of scale 64 has large gradients: torch's own first scale, 65536, overflows for many steps.
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=self.dtype == torch.float16)
        # A first step that overflows, as one in float16 may, leaves the momentum of torch's fused SGD uninitialised.
        self._fused = not self.scaler.is_enabled()
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=self._fused
        )
        self.augment = Augmentation(cfg, device) if any(probabilities(cfg)) else None
        self.order = GlobalOrder(len(dataset), cfg.batch_size, cfg.seed, DRAWS if self.augment else 0)
        self.step = 0
        self._stop_signal = 0
        self._named_absent: set[str] = set()
        self._failed: dict[str, int] = {}

    def run(self) -> None:
        """Train. A SIGINT or SIGTERM on any rank ends it after the running step, with a checkpoint."""
        on_rank_0(lambda: make_writable_folder(self.output))
        self._resume()
        self.log = RunLog(self.output, self.step, self.total_steps)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._describe()
            missed = self._at_epoch_end() and not from_rank_0(self.step in self.log.evaluated)
            if missed or (self.step == 0 and self.cfg.run_eval_at_start):
                self._evaluate()
            with StepProfile(self.cfg.profile, self.output, self.device, self.log.line) as profile:
                stopped = self._train(profile)
            if rank() == 0:
                save_curves(self.output / "metrics.jsonl", self.output / "curves.png")
            self.log.line(f"{'stopped' if stopped else 'done'} at step {self.step}: {self._path()}")
        finally:
            self.log.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if stopped:
            raise SystemExit(128 + (self._stop_signal or signal.SIGTERM))
        if self._failed:
            failed = "; ".join(f"{why} (step {step})" for why, step in self._failed.items())
            raise InputError(f"trained to the end, but not all evaluations succeeded: {failed}")

    def _train(self, profile: StepProfile) -> bool:
        """Train to the last step; True where a signal ended it before."""
        loader = Batches(self.dataset, self.order, self.cfg.num_workers, self.device, self.task.embeddings)
        agreement, rate = Agreement(), Rate()
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            self.order.start_at(epoch, done * self.cfg.accumulate_steps)
            self.task.student.train()
            self.task.head.train()
            micro_batches = iter(loader)
            for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.step)):
                agreement.post(self._stop_signal != 0)
                output, lr, norm = self.optimise(micro_batches)
                self.step += 1
                rate.add(self.total_batch)
                self.log.advance()
                if self.step % self.cfg.log_every == 0 or self.step == self.total_steps:
                    self._report(output.stats, lr, norm, rate.read())
                stop = agreement.read()
                every = self.cfg.checkpoint_every
                if stop or self.step == self.total_steps or self._at_epoch_end() or (every and self.step % every == 0):
                    self._save(output.stats["loss"])
                profile.step()
                if stop:
                    barrier()  # nobody leaves before rank 0 has saved
                    return True
            if self._at_epoch_end():
                self._evaluate()
                rate.read()
        return False

    def optimise(self, micro_batches: Iterator[TrainingBatch]) -> tuple[HeadOutput, float, Tensor]:
        """One optimiser step over accumulate_steps forward passes: the last output, the rate, the gradient's norm."""
        epoch = self.step / self.steps_per_epoch
        lr = learning_rate(epoch, self.total_batch, self.cfg)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.head.set_epoch(epoch)
        # What is random in a network (dropout) follows from seed, step and rank, so that a resumed run repeats it.
        torch.manual_seed(hash((self.cfg.seed, self.step, rank())) & (2**63 - 1))
        for number in range(self.cfg.accumulate_steps):
            with record_function("input"):
                batch = step_input(next(micro_batches), self.augment, self.device)
            if self.step == 0 and number == 0 and rank() == 0:
                save_preview(self.output / "first_batch.png", batch.images, batch.labels)
            last = number == self.cfg.accumulate_steps - 1
            with nullcontext() if last else self.task.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    output = self.task.step(batch)
                with record_function("backward"):
                    self.scaler.scale(output.loss / self.cfg.accumulate_steps).backward()
        with record_function("optimiser"):
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return output, lr, norm

    def _report(self, stats: dict[str, Tensor], lr: float, norm: Tensor, images_per_second: float) -> None:
        values = mean_over_ranks({**stats, "grad_norm": norm})
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        epoch = self.step / self.steps_per_epoch
        extra = {"images_per_second": images_per_second, "time": time.time()}
        self.log.metrics(self.step, "training", {"epoch": epoch, "lr": lr, **values}, **extra)
        self.log.postfix(loss=f"{values['loss']:.3f}", images_per_second=f"{images_per_second:.0f}")
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log.line(f"step {self.step} epoch {epoch:.3f} lr {lr:.5g} {shown} images/s {images_per_second:.1f}")
        self._require_finite(values["loss"])

    def _require_finite(self, loss: float) -> None:
        """Raise TrainingError for a loss that is not finite; a float16 step that overflows is the scaler's business."""
        if not (math.isfinite(loss) or self.scaler.is_enabled()):
            raise TrainingError(f"the loss is {loss} at step {self.step}; see docs/troubleshooting.md, NaN loss")

    def _evaluate(self) -> None:
        """Score the student by every protocol that is due at this epoch; all ranks take part."""
        epoch = self.step // self.steps_per_epoch
        names = due(self.cfg, epoch)
        if not names:
            return
        broadcast_buffers(self.task.student)
        results = evaluate(self.task.student, self.cfg, names, self.device, self.dtype)
        absent = [where for where in results.absent if where not in self._named_absent]
        self._named_absent.update(absent)
        for where in absent:
            self.log.line(f"not evaluated, absent: {where}")
        self._failed.update(dict.fromkeys(results.failed, self.step))
        if results.figures or results.failed:
            self.log.line(f"evaluation at step {self.step}, epoch {epoch}\n{screen(results._replace(absent=[]))}")
        self.log.metrics(self.step, "evaluation", flat(results.figures))

    def _at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def _path(self) -> Path:
        return self.output / f"{self.step}{checkpoint.PARTS[0]}"

    def _save(self, loss: Tensor) -> None:
        self._require_finite(mean_over_ranks({"loss": loss})["loss"])
        if rank() != 0:
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "run": self._identity(),
        }
        checkpoint.save(
            self.output, self.step, Checkpoint(self.task.student.state_dict(), self.task.head.header(), state)
        )
        checkpoint.prune(self.output, self.cfg.keep_checkpoints)
        self.log.line(f"saved {self._path()}")

    def _identity(self) -> dict[str, int | float | bool | str]:
        """What a run can only be resumed with: the task, the shapes of its weights, and what the order depends on."""
        keys = ("network", "embedding_size", "width", "SE", "loss", "num_classes", "num_image", "seed")
        return {
            "task": type(self.task).__name__,
            "total_batch": self.total_batch,
            **{key: self.cfg[key] for key in keys},
        }

    def _resume(self) -> None:
        step = on_rank_0(lambda: checkpoint.step_to_resume(self.cfg))
        if step == 0:
            return
        saved = checkpoint.load(self.output, step)
        before, now = saved.state["run"], self._identity()
        if before != now:
            changed = [f"{key} {before.get(key)!r} (now {now[key]!r})" for key in now if before.get(key) != now[key]]
            raise CheckpointError(
                f"{self.output}: step {step} was trained with {', '.join(changed)}; resume with the same, or start "
                "anew in another output from its weights, by init_from"
            )
        self.task.student.load_state_dict(saved.backbone)
        self.task.head.load_header(saved.header)
        self.optimizer.load_state_dict(saved.state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = self._fused
        self.scaler.load_state_dict(saved.state["scaler"])
        self.step = step
        on_rank_0(lambda: checkpoint.remove_after(self.output, step))

    def _describe(self) -> None:
        """The effective config, the versions and the command, as a preset that starts the same run."""
        about = describe_run()
        if rank() == 0:
            with written_whole(self.output / "config.py") as file:
                file.write(dump_config(self.cfg, about).encode())
        self.log.line(about)
        self.log.line(
            f"{len(self.dataset)} images of {self.dataset.num_classes} identities from {self.dataset.source}; "
            f"{self.steps_per_epoch} steps an epoch of {self.total_batch} images in "
            f"{str(self.dtype).removeprefix('torch.')}, from step {self.step} to {self.total_steps}"
        )
        for note in self.task.notes:
            self.log.line(note)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop_signal = number
