"""The training loop. It does not know the method: a task gives a loss and named values, the loop does the rest."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.profiler import record_function

from config import dump_config
from data.augment import DRAWS, Augmentation, probabilities
from data.dataset import FaceDataset
from data.loader import Batches, GlobalOrder, TrainingBatch
from eval.protocols import due, evaluate, flat
from eval.report import format_results
from heads import HeadOutput
from train.bad_steps import BadSteps, skippable_sgd, step_unless
from train.checkpoint import PARTS, Saver
from train.curves import save_curves, save_preview
from train.resume import RunState
from train.run_log import Rate, RunLog
from train.schedules import learning_rate
from train.step_profile import StepProfile
from train.tasks import Task, step_input
from utils.about import describe_run
from utils.distributed import (
    Agreement,
    barrier,
    broadcast_buffers,
    from_rank_0,
    mean_over_ranks,
    on_rank_0,
    rank,
    report_activity,
    world_size,
)
from utils.errors import InputError
from utils.files import lock_folder, make_writable_folder, write_text
from utils.precision import compute_type


class Trainer:
    """One run: `run()` trains from where the config says to the end, and leaves checkpoints, logs and curves."""

    def __init__(self, cfg: EasyDict, task: Task, dataset: FaceDataset, device: torch.device) -> None:
        self.cfg, self.task, self.dataset, self.device = cfg, task, dataset, device
        self.output = Path(cfg.output)
        self.dtype = compute_type(cfg.dtype, device)
        self.total_batch = cfg.batch_size * world_size() * cfg.accumulate_steps
        self.steps_per_epoch = len(dataset) // self.total_batch
        if cfg.batch_size * (world_size() if cfg.sync_bn else 1) < 2:
            raise InputError("batch_size = 1: BatchNorm needs two images; raise it, or sync_bn=True on several ranks")
        if self.steps_per_epoch == 0:
            raise InputError(f"a batch of {self.total_batch} from {len(dataset)} images: lower batch_size")
        self.total_steps = min(cfg.num_epoch * self.steps_per_epoch, cfg.max_steps or sys.maxsize)
        self.parameters = [p for module in (task.student, task.head) for p in module.parameters() if p.requires_grad]
        # A margin softmax of scale 64 has large gradients: torch's own first scale, 65536, overflows for many steps.
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=self.dtype == torch.float16)
        self.optimizer = skippable_sgd(self.parameters, cfg)
        self.bad_steps = BadSteps(cfg.max_bad_steps, device)
        self.state = RunState(cfg, self.total_batch, task, self.optimizer, self.scaler, self.bad_steps)
        self.augment = Augmentation(cfg, device) if any(probabilities(cfg)) else None
        self.order = GlobalOrder(len(dataset), cfg.batch_size, cfg.seed, DRAWS if self.augment else 0, cfg.train_flip)
        self.step = 0
        self._stop_signal = 0
        self._named_absent: set[str] = set()
        self._failed: dict[str, int] = {}

    def run(self) -> None:
        """Train. A SIGINT or SIGTERM on any rank ends it after the running step or evaluation, with a checkpoint."""
        on_rank_0(self._take_output)
        self.step, self._notes = self.state.resume()
        self.log = RunLog(self.output, self.step, self.total_steps)
        self.saver = Saver(self.output, self.cfg.keep_checkpoints, self.log.line)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._describe()
            missed = self._at_epoch_end() and not from_rank_0(self.step in self.log.evaluated)
            if missed or (self.step == 0 and self.cfg.run_eval_at_start):
                self._evaluate()
            with StepProfile(self.cfg.profile, self.output, self.device, self.log.line) as profile:
                stopped = self._train(profile)
            if rank() == 0:
                self.log.unless_full(lambda: save_curves(self.output / "metrics.jsonl", self.output / "curves.png"))
            self.saver.finish()
            place = self._path() if self.saver.unsaved is None else "its checkpoint is not saved"
            self.log.line(f"{'stopped' if stopped else 'done'} at step {self.step}: {place}")
        except RuntimeError:
            previous = {}  # a rank may be lost: a launcher's SIGTERM must not come before this one has said which
            raise
        finally:
            try:
                self.saver.finish()
            finally:
                self.log.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if stopped:
            raise SystemExit(128 + (self._stop_signal or signal.SIGTERM))
        if (unsaved := from_rank_0(self.saver.unsaved)) is not None:
            raise InputError(f"{self.output}: trained to the end, but the checkpoint of step {unsaved} is not saved")
        if self._failed:
            failed = "; ".join(f"{why} (step {step})" for why, step in self._failed.items())
            raise InputError(f"trained to the end, but not all evaluations succeeded: {failed}")

    def _take_output(self) -> None:
        make_writable_folder(self.output)
        self._lock = lock_folder(self.output)

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
                agreement.post(self._stop_signal != 0, self.bad_steps.too_many())
                output, lr, norm = self.optimise(micro_batches)
                self.step += 1
                rate.add(self.total_batch)
                self.log.advance()
                self.saver.poll()
                if self.step % self.cfg.log_every == 0 or self.step == self.total_steps:
                    self._report(output.stats, lr, norm, rate.read())
                stop, too_many = agreement.read()
                too_many |= self.step == self.total_steps and self.bad_steps.too_many(wait=True)
                if stop or too_many or self._checkpoint_is_due():
                    self._save()
                profile.step()
                if stop or too_many:
                    self.saver.finish()
                    barrier()  # nobody leaves before rank 0 has saved
                    if too_many:
                        raise self.bad_steps.error(self.step)
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
        self.task.begin_step()
        for number in range(self.cfg.accumulate_steps):
            report_activity(self.step + 1, "waiting for input")
            with record_function("input"):
                batch = step_input(next(micro_batches), self.augment, self.device)
            if self.step == 0 and number == 0 and rank() == 0:
                preview = self.output / "first_batch.png"
                self.log.unless_full(partial(save_preview, preview, batch.images, batch.labels))
            last = number == self.cfg.accumulate_steps - 1
            report_activity(self.step + 1, "forward and backward")
            with nullcontext() if last else self.task.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    output = self.task.step(batch)
                with record_function("backward"):
                    # A loss or a statistic (of the teacher, say) that is not finite makes this rank's gradients NaN,
                    # and sharing them makes those of all ranks so.
                    finite = torch.stack([output.loss.detach(), *output.stats.values()]).isfinite().all()
                    passed = torch.where(finite, 1.0, torch.nan) / self.cfg.accumulate_steps
                    self.scaler.scale(output.loss * passed).backward()
        with record_function("optimiser"):
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip_grad_norm)
            bad = ~norm.isfinite()
            step_unless(bad, self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self.task.end_step(bad)
            self.bad_steps.add(bad, self.step + 1, {**output.stats, "grad_norm": norm})
        return output, lr, norm

    def _report(self, stats: dict[str, Tensor], lr: float, norm: Tensor, images_per_second: float) -> None:
        barrier()  # on the host, where a rank that hangs is told, before the GPU is waited for
        values = mean_over_ranks({**stats, "grad_norm": norm, "bad_steps": self.bad_steps.total})
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        epoch = self.step / self.steps_per_epoch
        extra = {"images_per_second": images_per_second, "time": time.time()}
        self.log.metrics(self.step, "training", {"epoch": epoch, "lr": lr, **values}, **extra)
        self.log.postfix(loss=f"{values['loss']:.3f}", images_per_second=f"{images_per_second:.0f}")
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log.line(f"step {self.step} epoch {epoch:.3f} lr {lr:.5g} {shown} images/s {images_per_second:.1f}")

    def _evaluate(self) -> None:
        """Score the student by every protocol that is due at this epoch; all ranks take part."""
        epoch = self.step // self.steps_per_epoch
        names = due(self.cfg, epoch)
        if not names:
            return
        report_activity(self.step, "evaluation")
        broadcast_buffers(self.task.student)
        results = evaluate(self.task.student, self.cfg, names, self.device, self.dtype)
        absent = [where for where in results.absent if where not in self._named_absent]
        self._named_absent.update(absent)
        for where in absent:
            self.log.line(f"not evaluated, absent: {where}")
        self._failed.update(dict.fromkeys(results.failed, self.step))
        if results.metrics or results.failed:
            self.log.line(
                f"evaluation at step {self.step}, epoch {epoch}\n{format_results(results._replace(absent=[]))}"
            )
        self.log.metrics(self.step, "evaluation", flat(results.metrics))

    def _at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def _checkpoint_is_due(self) -> bool:
        every = self.cfg.checkpoint_every
        return self.step == self.total_steps or self._at_epoch_end() or (every > 0 and self.step % every == 0)

    def _path(self) -> Path:
        return self.output / f"{self.step}{PARTS[0]}"

    def _save(self) -> None:
        barrier()
        if rank() != 0:
            return
        self.log.retry()
        self.saver.save(self.step, self.state.checkpoint())

    def _describe(self) -> None:
        """The effective config, the versions and the command, as a preset that starts the same run."""
        about = describe_run()
        if rank() == 0:
            write_text(self.output / "config.py", dump_config(self.cfg, about))
        self.log.line(about)
        self.log.line(
            f"{len(self.dataset)} images of {self.dataset.num_classes} identities from {self.dataset.source}; "
            f"{self.steps_per_epoch} steps an epoch of {self.total_batch} images in "
            f"{str(self.dtype).removeprefix('torch.')}, from step {self.step} to {self.total_steps}"
        )
        for note in (*self._notes, *self.task.notes):
            self.log.line(note)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop_signal = number
