"""The training loop: steps, evaluation, checkpoints, and stopping on a signal. It does not know the method."""

import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from easydict import EasyDict

from config import dump_config
from data.augment import DRAWS, build_augmentation
from data.dataset import FaceDataset
from data.loader import Batch, GlobalOrder, TrainingLoader
from data.preview import save_preview
from eval.protocols import build_evaluation_sets
from train.best import BestCheckpoint, build_training_criterion
from train.evaluation import PeriodicEvaluation
from train.resume import RunState
from train.run_files import RunFiles
from train.run_log import Rate
from train.step import StepResult, TrainingStep
from train.step_profile import StepProfile
from train.tasks import Task
from utils.about import describe_run
from utils.distributed import (
    Agreement,
    barrier,
    from_rank_0,
    mean_over_ranks,
    on_rank_0,
    rank,
    report_activity,
    world_size,
)
from utils.errors import InputError
from utils.files import write_text


class Trainer:
    """Trains a task, from step 0 or a checkpoint to the end. Writes checkpoints, logs and curves to cfg.output."""

    def __init__(self, cfg: EasyDict, task: Task, dataset: FaceDataset, device: torch.device) -> None:
        torch.backends.cudnn.benchmark = True  # the shapes of training are always the same
        self.cfg, self.task, self.dataset, self.device = cfg, task, dataset, device
        self.total_batch = cfg.batch_size * world_size() * cfg.accumulate_steps
        self.steps_per_epoch = len(dataset) // self.total_batch
        if cfg.batch_size * (world_size() if cfg.sync_bn else 1) < 2:
            raise InputError(
                "batch_size = 1: BatchNorm needs two images; raise it or set sync_bn=True on several ranks"
            )
        if self.steps_per_epoch == 0:
            raise InputError(f"a step needs {self.total_batch} images, the set has {len(dataset)}: lower batch_size")
        self.total_steps = min(cfg.num_epoch * self.steps_per_epoch, cfg.max_steps or sys.maxsize)
        self.step = 0  # completed optimiser steps
        self.take_step = TrainingStep(cfg, task, self.steps_per_epoch, self.total_batch, device)
        self.bad_steps, self.dtype = self.take_step.bad_steps, self.take_step.dtype
        self.state = RunState(cfg, self.total_batch, dataset, task, self.take_step)
        self.augment = build_augmentation(cfg, device)
        draws = DRAWS if self.augment else 0
        window = cfg.order_window if cfg.order == "blocks" else 0
        self.order = GlobalOrder(len(dataset), cfg.batch_size, cfg.seed, draws, cfg.train_flip, window, cfg.order_block)
        self.files = RunFiles(Path(cfg.output), cfg.keep_checkpoints, self.total_steps)
        self.log = self.files.log
        sets = build_evaluation_sets(cfg)
        self.evaluation = PeriodicEvaluation(sets, task.student, self.log, device, self.dtype, self.files.interruptible)
        criterion = on_rank_0(lambda: build_training_criterion(cfg.keep_best, sets))
        self.best = BestCheckpoint(self.files.folder, cfg.keep_checkpoints, criterion, self.files.saver, self.log)

    def run(self) -> None:
        """Train. SIGINT, SIGTERM or SIGHUP on any rank ends the run after the current step, with a checkpoint.

        During an evaluation it ends the run at once, or, if not all ranks got it, as soon as the other ranks have
        embedded their images of the current set. The resumed run then repeats the evaluation.

        Raises InputError at the end if the last checkpoint or an evaluation failed, and SystemExit after a signal.
        """
        on_rank_0(self.files.lock)
        self.step, notes = self.state.resume()
        if self.step == 0:
            self.task.begin()
        with self.files.opened(self.step):
            self._describe(notes)
            on_rank_0(self.best.resume)
            # An earlier part of the run may have ended between the checkpoint of an epoch and its evaluation.
            missed = self._at_epoch_end() and not from_rank_0(self.step in self.log.evaluated)
            try:
                if missed or (self.step == 0 and self.cfg.run_eval_at_start):
                    self._evaluate()
                with StepProfile(self.cfg.profile, self.files.folder, self.device, self.log.line) as profile:
                    stopped = self._train(profile)
            except KeyboardInterrupt:  # from an evaluation
                stopped = True
            self.files.finish(self.step, stopped)
        if stopped:
            raise SystemExit(128 + (self.files.stop_signal or signal.SIGTERM))
        self.files.require_saved()
        self.evaluation.require_success()

    def _train(self, profile: StepProfile) -> bool:
        """Train to the last step. Returns whether a signal ended the run before the last step."""
        loader = TrainingLoader(
            self.dataset, self.order, self.cfg.num_workers, self.device, self.task.embeddings, self.augment
        )
        agreement, rate = Agreement(), Rate()
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            self.order.start_at(epoch, done * self.cfg.accumulate_steps)
            self.task.student.train()
            self.task.head.train()
            batches = self._with_preview(iter(loader))
            for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.step)):
                agreement.post(self.files.stop_signal != 0, self.bad_steps.too_many())
                result = self.take_step(batches, self.step)
                self.step += 1
                rate.add(self.total_batch)
                self.log.advance()
                self.files.saver.poll()
                if self.step % self.cfg.log_every == 0 or self.step == self.total_steps:
                    self._report(result, rate)
                stop, too_many = agreement.read()
                too_many |= self.step == self.total_steps and self.bad_steps.too_many(wait=True)
                if stop or too_many or self._checkpoint_is_due():
                    self._save()
                profile.step()
                if stop or too_many:
                    self.files.saver.finish()
                    barrier()  # no rank leaves before rank 0 has saved
                    if too_many:
                        raise self.bad_steps.error(self.step)
                    return True
            if self._at_epoch_end():
                self._evaluate()
                rate.read()
        return False

    def _evaluate(self) -> None:
        metrics = self.evaluation(self.step, self.step // self.steps_per_epoch)
        if rank() == 0:
            self.best.update(self.step, metrics)

    def _report(self, result: StepResult, rate: Rate) -> None:
        """Log the statistics of a step, as means over the ranks, and the images per second since the last report."""
        barrier()  # waits on the host, where a rank that hangs is detected; only then wait for the GPU
        values = mean_over_ranks({**result.stats, "bad_steps": self.bad_steps.total})
        images_per_second = rate.read()  # only now has a GPU finished the steps that were counted
        if self.take_step.scaler.is_enabled():
            values["loss_scale"] = self.take_step.scaler.get_scale()
        epoch = self.step / self.steps_per_epoch
        extra = {"images_per_second": images_per_second, "time": time.time()}
        self.log.metrics(self.step, "training", {"epoch": epoch, "lr": result.lr, **values}, **extra)
        self.log.postfix(loss=f"{values['loss']:.3f}", images_per_second=f"{images_per_second:.0f}")
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log.line(f"step {self.step} epoch {epoch:.3f} lr {result.lr:.5g} {shown} images/s {images_per_second:.1f}")

    def _at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def _checkpoint_is_due(self) -> bool:
        every = self.cfg.checkpoint_every
        return self.step == self.total_steps or self._at_epoch_end() or (every > 0 and self.step % every == 0)

    def _save(self) -> None:
        barrier()
        report_activity(self.step, "saving", has_collectives=True)
        if rank() == 0:
            self.log.retry()
        try:
            shards = self.state.write_shards(self.step)
        except OSError as error:
            if rank() == 0:
                self.files.saver.fail(self.step, error)
            return
        checkpoint = self.state.checkpoint()
        if rank() == 0:
            self.files.saver.save(self.step, checkpoint, shards)

    def _with_preview(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches. Before the first step of a run, rank 0 saves a picture of the first batch."""
        if self.step == 0 and rank() == 0:
            first = next(batches)
            path = self.files.folder / "first_batch.png"
            self.log.try_writing(partial(save_preview, path, first.images, first.labels))
            yield first
            del first
        yield from batches

    def _describe(self, notes: list[str]) -> None:
        """Write the effective config, as a preset that starts the same run, and log what the run is."""
        about = describe_run()
        if rank() == 0:
            # With global_step=0; otherwise the file could not start a new run in another output.
            write_text(self.files.folder / "config.py", dump_config(EasyDict(self.cfg, global_step=0), about))
            if self.task.embeddings is not None:
                self.task.embeddings.write_copies(self.files.folder)
        self.log.line(about)
        self.log.line(
            f"{len(self.dataset)} images of {self.dataset.num_classes} identities from {self.dataset.source}; "
            f"{self.steps_per_epoch} steps per epoch with {self.total_batch} images each in "
            f"{str(self.dtype).removeprefix('torch.')}, from step {self.step} to {self.total_steps}"
        )
        for note in (*notes, *self.dataset.notes, *self.task.notes):
            self.log.line(note)
