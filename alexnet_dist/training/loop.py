"""The loop around the step: control, log points, epochs, evaluation, best weights, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.base.errors import DataError, DivergedError, InterruptedRunError
from alexnet_dist.base.machine import measure_memory
from alexnet_dist.base.progress import FILE_ALONE, Fact, Progress, View, format_seconds, is_debug, phase
from alexnet_dist.base.run_record import CHECKPOINTS, METRICS
from alexnet_dist.base.spans import DATA_WAIT, span
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.index import BadFile
from alexnet_dist.inference.checkpoints import step_of
from alexnet_dist.inference.weights import check_finite, load_weights
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.tracking.trackers import Trackers, read_rows
from alexnet_dist.training.checkpoint import Checkpoint, save_checkpoint, set_aside_newer
from alexnet_dist.training.divergence import find_good_checkpoint
from alexnet_dist.training.evaluate import Evaluation, check_outputs, evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.graph import Recorder, StepGraph
from alexnet_dist.training.metrics import Totals
from alexnet_dist.training.optim import optimizer_tensors, set_lr
from alexnet_dist.training.predictions import Spectator
from alexnet_dist.training.profile import Profiler
from alexnet_dist.training.saver import Saver
from alexnet_dist.training.schedule import Schedule
from alexnet_dist.training.state import TrainState
from alexnet_dist.training.step import DeviceCounters, train_step

logger = logging.getLogger("alexnet_dist")


@dataclass(frozen=True)
class Cadence:
    """When things happen.

    Args:
        total_steps: updates of the run.
        log_steps: updates between log points.
        save_steps: updates between checkpoints; None = after each epoch.
        keep: intact checkpoints kept.
        early_stop: evaluations without a better val top-1 after which the run ends; None = it never ends early.
    """

    total_steps: int
    log_steps: int
    save_steps: int | None
    keep: int
    early_stop: int | None


def list_facts(row: dict[str, Any], times: Fact) -> list[Fact]:
    """A row of a log point as it is shown, the most important first; `times` are those to go."""
    loss, top1, lr = f"loss {row['loss']:.3f}", f"top-1 {row['top1']:.1%}", f"lr {row['lr']:.2g}"
    speed, wait = f"{row['images_per_second']:,.0f}", f"wait {row['data_wait_fraction']:.0%}"
    facts = [(loss, loss), (top1, top1), (f"{speed}/s", f"{speed} images/s"), times, (lr, lr), (wait, f"data {wait}")]
    if "gpu_memory_mib" in row:
        memory = f"{row['gpu_memory_mib'] / 1024:.1f} GiB"
        facts.append((memory, f"GPU memory {memory}"))
    return facts


@dataclass(eq=False)
class Trainer:
    """One process's side of a training run.

    Args:
        runtime: this process among the others.
        model: the network, or this process's part of it, not replicated.
        forward: what the step calls: the network compiled and replicated.
        partition: how the tensors of this process follow from those of the whole network.
        optimizer: over its parameters.
        schedule: the learning rate.
        loader: training batches.
        val_loader: validation set, None without one.
        cadence: when things happen.
        micro_batch_size: images per forward.
        seed: of the run.
        gate: what every batch passes first.
        folder: the run folder.
        trackers: metrics.jsonl and its mirrors in the main process; elsewhere what every process has.
        save_model: writes model/ from the whole network's weights and a note on where they come from.
        describe_model: config.json of a model folder, from such a note.
        find_model_step: the step of the weights that model/ holds; None where it holds none that can be used.
        list_bad_files: writes bad_files.csv.
        run_facts: what every checkpoint says of the run that it belongs to.
        is_restored: whether the state is a checkpoint's.
        verdicts: which checkpoints are intact, as far as that is known.
        state: where the run stands.
        profiler: records some updates; None = none are wanted, or another process does it.
        saver: writes checkpoints.
        spectator: sees what the network says of each image of the validation set.
        fused_loss: see `train_step`.
        recorder: captures a whole update, which is then replayed; None = all updates are eager.
        give_up_graph: is told why they stay eager although there is a recorder.
    """

    runtime: Runtime
    model: nn.Module
    forward: nn.Module
    partition: Partition
    optimizer: Optimizer
    schedule: Schedule
    loader: Loader
    val_loader: Loader | None
    cadence: Cadence
    micro_batch_size: int
    seed: int
    gate: BatchGate
    folder: Path
    trackers: Trackers
    save_model: Callable[[dict[str, Tensor], dict[str, Any]], None]
    describe_model: Callable[[dict[str, Any]], bytes]
    find_model_step: Callable[[], int | None]
    list_bad_files: Callable[[set[BadFile]], None]
    run_facts: dict[str, Any]
    is_restored: bool = False
    verdicts: dict[Path, bool] = field(default_factory=dict)
    state: TrainState = field(default_factory=TrainState)
    profiler: Profiler | None = None
    saver: Saver = field(default_factory=lambda: Saver(in_background=False))
    spectator: Spectator | None = None
    fused_loss: bool = False
    recorder: Recorder | None = None
    give_up_graph: Callable[[str], None] = lambda reason: None

    def __post_init__(self) -> None:
        self._counters = DeviceCounters.on(self.runtime.device)
        self._step = partial(
            train_step,
            self.runtime,
            self.forward,
            self.optimizer,
            micro_batch_size=self.micro_batch_size,
            counters=self._counters,
            fused_loss=self.fused_loss,
        )
        self._graph = self._prepare_graph(self.recorder) if self.recorder is not None else None
        self.is_done_before = self.is_model_lost = self.is_model_new = False
        self._saved = (0, -1)
        self._progress = Progress("training", self.cadence.total_steps, shown=False)
        self._last_row: dict[str, Any] = {}  # of the last log point
        self._clock = time.perf_counter()

    def _prepare_graph(self, recorder: Recorder) -> StepGraph:
        return StepGraph(
            self.runtime,
            recorder,
            self.model,
            self.optimizer,
            self._counters,
            lambda batch, scale: self._step(batch, scale=scale),
            self.give_up_graph,
        )

    def _settle_model(self) -> None:
        """Notice that model/ does not hold the best weights the checkpoint knows of: then the next ones are the best.

        It may be gone, or be of later updates than the checkpoint. Those are made again, but on other processes, or on
        a GPU, they need not come out as well.
        """
        state, step = self.state, self.runtime.on_main(self.find_model_step)
        if step is not None and step <= state.step and state.best_step in (None, step):
            return
        self.is_model_lost, state.best_step = True, None
        if not self.is_over and self.runtime.is_main:
            is_later = step is not None and step > state.step
            what = "is of later updates than" if is_later else "does not hold the best weights of"
            logger.info(f"model/ {what} this checkpoint: the next evaluation replaces it")

    def load_weights(self, weights: dict[str, Tensor], where: str) -> None:
        """Take this process's part of the whole network's weights; `where` they come from is for the message."""
        load_weights(self.model, self.partition.cut(weights), where)

    def train(self) -> None:
        """Train to the last step, or until validation has stalled for too long.

        Raises:
            InterruptedRunError: a signal asked to stop; the state is saved.
            DivergedError: a loss was not finite; nothing of it is in the weights or in a checkpoint.
            DataError: a bad file, where they are not skipped.
        """
        if self.is_restored:
            self._settle_model()
        done, total = self.state.step, self.cadence.total_steps
        self.is_done_before, self._saved = self.is_over, self._position
        shown = self.runtime.is_main and not self.is_over
        self._progress = Progress(
            "training", total, "steps", done=done, shown=shown, describe=self._describe, patience=0.0
        )
        with self._divergence_settled(), self._saving_settled():
            with self._progress, self.profiler or nullcontext():
                self._train_on()
            self._keep_a_model()
            if self._saved != self._position:
                self._save()
            self._finish_saving()
        if self.stopped_early and self.runtime.is_main and not self.is_done_before:
            state = self.state
            logger.info(
                f"early stop at step {state.step}: train.early_stop is {self.cadence.early_stop}, the best val top-1 "
                f"is still {state.best_top1:.2%} of epoch {state.best_epoch}"
            )

    def _train_on(self) -> None:
        try:
            self._restart_clock()
            self._close_epoch()  # a run may have been stopped between an epoch's last update and its evaluation
            self.forward.train()
            self._restart_clock()
            stop = self.state.step if self.is_over else self.cadence.total_steps
            if self.profiler is not None:
                self.profiler.choose_updates(self.state.step, stop)
            for batch in self._timed(self.loader.batches(self.state.step, stop)):
                num_images = self.gate.admit(batch)
                self._update(batch, num_images)
                if self.profiler is not None:
                    self.profiler.end_update()
                self._after_update(batch)
                if self.stopped_early:
                    break
        except InterruptedRunError as stopped:
            with phase("saving", self.runtime.is_main):
                self._save()
                self._finish_saving()
            raise InterruptedRunError(stopped.signal_number, self.state.step) from None
        finally:
            if self._graph is not None:
                self._graph.release()

    @property
    def stopped_early(self) -> bool:
        """Whether no update follows, although there are some left, as val top-1 has not risen for too long."""
        limit, state = self.cadence.early_stop, self.state
        return limit is not None and state.stalled >= limit and state.step < self.cadence.total_steps

    @property
    def is_over(self) -> bool:
        """Whether no update follows."""
        return self.stopped_early or self.state.step >= self.cadence.total_steps

    @property
    def _position(self) -> tuple[int, int]:
        return self.state.step, self.state.evaluated_step

    @property
    def epoch(self) -> int:
        """Finished passes over the training set."""
        return self.state.step // self.schedule.steps_per_epoch

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            if self.profiler is not None:
                self.profiler.begin_update(self.state.step)
            began = time.perf_counter()
            with span(DATA_WAIT):
                batch = next(batches, None)
            if batch is None:
                return
            self.state.window.wait_seconds += time.perf_counter() - began
            yield batch

    def _update(self, batch: Batch, num_images: int) -> None:
        state = self.state
        schedule = self.schedule
        set_lr(
            self.optimizer,
            schedule.lr(state.step, state.plateau),
            constant_lr=schedule.constant_lr(state.step),
            epoch=self.epoch,
        )
        scale = self.runtime.dp_size / max(num_images, 1)
        seed = partial(self.runtime.seed_dropout, self.seed, state.step)
        if self._graph is not None:
            self._graph.update(batch, scale, seed)
        else:
            seed()
            self._step(batch, scale=scale)
        state.step += 1
        state.samples_seen += num_images
        state.window.num_images += num_images
        state.window.num_steps += 1

    def _after_update(self, batch: Batch) -> None:
        state, cadence = self.state, self.cadence
        if state.step % cadence.log_steps == 0 or state.step == cadence.total_steps:
            self._log_window()
        self._progress.advance()
        closed = self._close_epoch(batch)
        if state.step % cadence.save_steps == 0 if cadence.save_steps else closed:
            self._save()

    # -- log points ---------------------------------------------------------------------------------------------------

    def _log_window(self) -> None:
        self._drain()
        window, state = self.state.window, self.state
        row: dict[str, Any] = {
            "event": "train",
            "step": state.step,
            "epoch": self.epoch,
            "samples_seen": state.samples_seen,
            "loss": window.loss,
            "top1": window.top1,
            "lr": self.schedule.lr(state.step - 1, state.plateau),
            "images_per_second": window.images_per_second,
            "data_wait_seconds": window.wait_seconds / max(window.num_steps, 1),
            "data_wait_fraction": window.wait_seconds / window.seconds if window.seconds else 0.0,
            **measure_memory(self.runtime.device),
        }
        self.log(row)
        is_first, self._last_row = not self._last_row, row
        if self.runtime.is_main:
            logger.info(
                f"step {state.step}/{self.cadence.total_steps}  loss {row['loss']:.4f}  top-1 {row['top1']:.1%}  lr "
                f"{row['lr']:.3g}  {row['images_per_second']:.0f} images/s  data wait {row['data_wait_fraction']:.0%}  "
                f"memory {row.get('gpu_memory_mib', row.get('resident_memory_mib')):,.0f} MiB",
                extra=FILE_ALONE,
            )
        if is_first or is_debug():
            self._progress.say_now()
        state.epoch_totals.add(window)
        state.window = Totals()

    def _describe(self) -> View:
        """What is shown of training: where it is now, and the figures of the last log point."""
        step, steps_per_epoch, total = self.state.step, self.schedule.steps_per_epoch, self.cadence.total_steps
        is_closed = self.state.evaluated_step == step < total  # else its last update still stands for it
        epoch = (step if is_closed else max(step - 1, 0)) // steps_per_epoch
        first = epoch * steps_per_epoch
        num_steps = min(steps_per_epoch, total - first)
        rate, row = self._progress.rate, self._last_row
        lefts = [format_seconds(steps / rate if rate else None) for steps in (first + num_steps - step, total - step)]
        times = (f"{'/'.join(lefts)} left", f"{lefts[0]} left of the epoch, {lefts[1]} of the run")
        facts = [times] if not row else list_facts(row, times)
        return View(f"epoch {epoch + 1}/{-(-total // steps_per_epoch)}", step - first, num_steps, facts)

    def _drain(self) -> None:
        """Read the device's counters into the window: the only place where training waits for the device."""
        loss_sum, num_correct = self._counters.sums.tolist()
        if not math.isfinite(loss_sum):  # what the device takes for its own verdict; to ask for that is a second wait
            where, why = f"at or before step {self.state.step}", "no update was made from it"
            raise DivergedError("the loss is not finite", where=where, why=why)
        self._counters.sums.zero_()
        window = self.state.window
        if window.num_steps and not window.num_images:
            self._raise_no_image()
        window.loss_sum += loss_sum
        window.num_correct += num_correct
        now = time.perf_counter()
        window.seconds += now - self._clock
        self.state.train_seconds += now - self._clock
        self._clock = now

    def _raise_no_image(self) -> None:
        step, bad_files = self.state.step, sorted((bad.path, bad.reason) for bad in self.gate.gather_bad_files())
        raise DataError(
            "no image could be read",
            where=f"updates {step - self.state.window.num_steps + 1} to {step}",
            why=": ".join(bad_files[-1]) if bad_files else "the batches were empty",
            remedy="bring the files back and start again",
        )

    @contextmanager
    def _divergence_settled(self) -> Iterator[None]:
        """Make sure that the remedy works: set aside checkpoints that no rate could help, and name what is left."""
        try:
            yield
        except DivergedError as error:
            weights = self.partition.merge(self.model.state_dict())
            error.set_remedy(self.runtime.on_main(lambda: self._leave_ruined(weights)))
            raise

    def _leave_ruined(self, weights: dict[str, Tensor]) -> str:
        folder, metrics = self.folder / CHECKPOINTS, self.folder / METRICS
        num_outputs = next(reversed(weights.values())).shape[0]
        good = find_good_checkpoint(folder, read_rows(metrics), math.log(max(num_outputs, 2)), weights)
        step = step_of(good) if good is not None else -1
        aside = set_aside_newer(folder, step, metrics, self.folder / "model")
        if aside is not None:
            logger.warning("checkpoints after step %d hold weights beyond repair: they lie in %s", max(step, 0), aside)
        if good is None:
            return "there is no good checkpoint, the next start begins at step 0; lower optimizer.lr or warm up"
        warm_up = f"warm up (schedule.warmup_steps above {step})"
        return f"the last good checkpoint is {good.name}; lower optimizer.lr or {warm_up}"

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter()

    def log(self, row: dict[str, Any]) -> None:
        """Write a row to metrics.jsonl and its mirrors."""
        self.trackers.log(row)

    # -- epochs -------------------------------------------------------------------------------------------------------

    def _close_epoch(self, batch: Batch | None = None) -> bool:
        """After an epoch's last update, or the run's: evaluate, note the best, keep its weights. Whether it was one.

        `batch` is that of the update; None where the update was made by an earlier start.
        """
        state = self.state
        at_epoch_end = state.step > 0 and state.step % self.schedule.steps_per_epoch == 0
        at_end = at_epoch_end or state.step >= self.cadence.total_steps  # which fewer images may have made smaller
        if not at_end or state.evaluated_step == state.step:
            return False
        if state.window.num_steps:
            self._log_window()
        result = self.evaluate_val() if self.val_loader is not None else None
        if self.runtime.is_main:
            logger.info(self._format_epoch(result))
        if at_epoch_end:
            self._log_epoch(result)
        if result is None:
            self._save_model({"step": state.step, "epoch": self.epoch}, batch)
        state.evaluated_step = state.step
        self._restart_clock()
        return at_epoch_end

    def evaluate_val(self) -> Evaluation:
        """Evaluate on the validation set, log it, keep the weights if they are the best."""
        assert self.val_loader is not None
        state = self.state
        spectator = self.spectator if self.spectator is not None and self.spectator.begin() else None
        result = evaluate(
            self.runtime,
            self.model,
            self.val_loader,
            self.gate.admit,
            None if spectator is None else spectator.observe,
            name=f"epoch {self.epoch}: validating",
            where=f"validation at step {state.step}",
            remedy="",
        )
        self.log({"event": "eval", "split": "val", "step": state.step, "epoch": self.epoch, **asdict(result)})
        if spectator is not None:
            spectator.show(state.step)
        state.final_top1 = result.top1
        state.plateau.observe(result.top1, self.schedule.patience)
        state.stalled = 0 if state.best_top1 is None or result.top1 > state.best_top1 else state.stalled + 1
        if state.is_best(result):
            state.best_top1, state.best_top5, state.best_loss = result.top1, result.top5, result.loss
            state.best_epoch, state.best_step = self.epoch, state.step
            self._save_model({"step": state.step, "epoch": self.epoch, "val_top1": result.top1})
        return result

    def _keep_a_model(self) -> None:
        """Where a run has ended and model/ is gone, with no evaluation left to fill it: the last weights are the best.

        Their figures on the validation set are theirs from then on; the weights that were better are not there.
        """
        state = self.state
        if self.runtime.on_main(self.find_model_step) is not None and not self.is_model_lost:
            return
        note: dict[str, Any] = {"step": state.step, "epoch": self.epoch}
        if self.val_loader is not None:
            result = evaluate(self.runtime, self.model, self.val_loader, self.gate.admit)
            state.best_top1, state.best_top5, state.best_loss = result.top1, result.top5, result.loss
            state.best_epoch, state.best_step = self.epoch, state.step
            note["val_top1"] = result.top1
        self._save_model(note)
        self._saved = (0, -1)  # the checkpoint must know of it
        if self.runtime.is_main:
            logger.info(f"model/ did not hold the best weights: it now holds the last ones, of step {state.step}")

    def _save_model(self, note: dict[str, Any], batch: Batch | None = None) -> None:
        """Replace model/. Without a validation set `batch` shows whether the network still gives anything."""
        self._finish_saving()  # what is saved still speaks of the weights that are in model/ now
        weights, where = self.partition.merge(self.model.state_dict()), f"step {self.state.step}"
        self.runtime.on_main(lambda: check_finite(weights, where, remedy=""))
        if batch is not None:
            check_outputs(self.runtime, self.model, batch, self.micro_batch_size, f"{where}, no validation set")
        self.runtime.on_main(lambda: self.save_model(weights, note))
        self.is_model_lost, self.is_model_new = False, True

    def _format_epoch(self, result: Evaluation | None) -> str:
        """An epoch, or the part of one with which a run ends, in one line: loss and top-1 of either set."""
        step, steps_per_epoch, totals = self.state.step, self.schedule.steps_per_epoch, self.state.epoch_totals
        numbers = "/".join(str(-(-steps // steps_per_epoch)) for steps in (step, self.cadence.total_steps))
        part = " (part)" if step % steps_per_epoch else ""
        parts = [f"epoch {numbers}{part}", f"train {totals.loss:.4f} {totals.top1:.1%}"]
        if result is not None:
            parts.append(f"val {result.loss:.4f} {result.top1:.2%}  top-5 {result.top5:.2%}")
        parts.append(f"{totals.seconds:.0f} s")
        return "  ".join(parts) + ("  best" if result is not None and self.state.best_step == step else "")

    def _log_epoch(self, result: Evaluation | None) -> None:
        totals = self.state.epoch_totals
        row: dict[str, Any] = {"event": "epoch", "epoch": self.epoch, "step": self.state.step}
        row |= {"train_loss": totals.loss, "train_top1": totals.top1}
        if result is not None:
            row |= {"val_loss": result.loss, "val_top1": result.top1}
        self.log({**row, "seconds": totals.seconds})
        self.state.epoch_totals = Totals()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @contextmanager
    def _saving_settled(self) -> Iterator[None]:
        """However training ends, what is being saved is whole before anything else happens to the run folder."""
        try:
            yield
        finally:
            self.saver.wait()

    def _finish_saving(self) -> None:
        self.runtime.on_main(self.saver.finish)

    def _save(self) -> None:
        self._drain()
        self._finish_saving()
        bad_files = self.gate.gather_bad_files()
        weights = self.partition.merge(self.model.state_dict())
        optimizer = self.partition.merge(optimizer_tensors(self.optimizer, self.model))
        self.runtime.on_main(lambda: self._save_here(weights, optimizer, bad_files))
        self._saved = self._position
        self._restart_clock()

    def _save_here(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], bad_files: set[BadFile]) -> None:
        scaler = self.runtime.scaler
        state = {
            **self.run_facts,
            "train": asdict(self.state),
            "metrics_bytes": self.trackers.sync(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        note = {"step": self.state.step, "epoch": self.epoch}
        weights, optimizer = self.saver.copy(weights, "weights"), self.saver.copy(optimizer, "optimizer")
        checkpoint = Checkpoint(weights, optimizer, state, self.describe_model(note))
        folder, step, keep = self.folder / CHECKPOINTS, self.state.step, self.cadence.keep

        def write() -> None:
            save_checkpoint(folder, step, checkpoint, keep, self.verdicts)
            self.list_bad_files(bad_files)

        self.saver.begin(write)
