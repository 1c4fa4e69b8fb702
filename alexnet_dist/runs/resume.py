"""Whether a run goes on, from where, and with which engine and precision. It is decided here alone, once a start.

A folder says what was: run.json and the checkpoints say whose they are, the stored settings how the run trained. What
follows from it are functions of these values. `decide` reads the folder and asks them; `Resumption` is its answer, with
the reasons. The precision alone comes before it, because processes join with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_dist.assembly.graph import find_failure_before
from alexnet_dist.assembly.kernels import CHOICES, PLAIN, Kernels
from alexnet_dist.assembly.sets import Splits
from alexnet_dist.base.durable import read_object
from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import say
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.run_record import CHECKPOINTS, CLEANED, RUN, SETTINGS, SUMMARY, read_marker, read_run
from alexnet_dist.data.engines.choose import REFERENCE, find_obstacle
from alexnet_dist.inference.checkpoints import choose_checkpoint, is_inside, list_checkpoints, read_run_id
from alexnet_dist.runs.changed_images import find_images_before
from alexnet_dist.runs.folder import new_run_id, read_settings
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config, TrainConfig

logger = logging.getLogger("alexnet_dist")

KEPT = "chosen when the run began"
# A run may go on with other values of these; data.root only where the data's fingerprint is equal.
CHANGEABLE = {
    "data.on_bad_file",
    "data.prefetch",
    "device",
    "output_dir",
    "train.epochs",
    "train.max_steps",
    "train.cuda_graph",
    "train.micro_batch_size",
    "data.cache_dir",
    "data.download",
    "data.engine",
    "data.root",
    "data.workers",
    "parallel.strategy",
    "parallel.exchange",
    "parallel.gradient_compression",
    "parallel.shard_size",
    "parallel.hybrid_schedule",
}
CHANGEABLE_SECTIONS = ("checkpoint.", "kernels.", "log.", "tracking.")
# These may change as well, and take effect from there on: the run is then no longer that of one configuration.
FROM_HERE_ON = ("optimizer.lr", "schedule.", "train.early_stop")

Changed = dict[str, tuple[Any, Any]]  # {dotted name: (value before, value now)}


class Choice(NamedTuple):
    """What `auto` stands for, and why."""

    name: str
    reason: str


class Origin(NamedTuple):
    """Where a start takes weights and the optimizer's state from."""

    run_id: str  # of the run in the folder
    checkpoint: Path | None  # None = step 0
    is_foreign: bool  # the checkpoint is another run's, and this one begins with it
    notes: list[str]  # lines for the user, on what was passed over or taken to be so


@dataclass(frozen=True)
class Resumption:
    """How a start goes on with the run in its folder.

    Args:
        run_id: of the run.
        checkpoint: what it goes on from; None = from step 0.
        is_foreign: the checkpoint is another run's: this one begins with it, and nothing of its own is there yet.
        is_named: the checkpoint was asked for, so that the run may go back to it.
        changed: the settings that differ from those until now.
        images: what is known of the images that the run began with: a fingerprint, and of run.json the counts.
        engine: the engine that `auto` meant before, or what takes its place; None = to be chosen.
        kernels: what the run computed with until now; None = to be chosen.
        graph_failure: why updates were not captured as a CUDA graph until now; see `find_failure_before`.
        device: where that was: cpu or cuda.
        pretrained: what run.json says of the weights that the run began with.
        was_finished: whether the run had ended.
        ended_at: the step at which it had, where it says so.
        starts: of the run until now, as run.json has them.
    """

    run_id: str
    checkpoint: Path | None = None
    is_foreign: bool = False
    is_named: bool = False
    changed: Changed = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    engine: Choice | None = None
    kernels: Kernels | None = None
    graph_failure: str | None = None
    device: str | None = None
    pretrained: dict[str, Any] | None = None
    was_finished: bool = False
    ended_at: int | None = None
    starts: Sequence[Mapping[str, Any]] = ()

    @property
    def processes_before(self) -> int | None:
        """Processes of the start before this one, where the run goes on and they are known."""
        return self.starts[-1].get("processes") if self.starts and self.goes_on else None

    @property
    def most_at_once(self) -> int | None:
        """The most images that a process of earlier starts had in one forward; None where that is not known."""
        return max((start.get("micro_batch_size") or 0 for start in self.starts), default=0) or None

    @property
    def goes_on(self) -> bool:
        """Whether the updates that follow are the same run's as those before."""
        return self.checkpoint is not None and not self.is_foreign

    def keep_kernels(self, device: str) -> Kernels | None:
        """What the run goes on computing with on a cpu or cuda; None = to be chosen, there for the first time."""
        return self.kernels if device == self.device else None

    def describe(self, step: int) -> str:
        """Where the run begins, for people; `step` is the checkpoint's."""
        if self.checkpoint is None:
            return "from step 0"
        if self.is_foreign:
            return f"begins from step {step} of another run, {self.checkpoint}"
        return f"resumed from {self.checkpoint.name}"


def decide(folder: Path, config: Config, named: str | None = None) -> Resumption:
    """Decide how a start goes on with the run in its folder. For the main process, which holds the folder.

    Args:
        folder: the run folder.
        config: the settings.
        named: the checkpoint that was asked for: a path, a name or a step; None = the newest intact one.

    Raises:
        CheckpointError: the checkpoint is damaged or another run's, or there are some and none is intact; or what the
            run's settings or images were is not known any more.
        UsageError: a setting differs that may not.
    """
    facts, summary = read_run(folder), read_object(folder / SUMMARY)
    if facts and not read_object(folder / RUN):
        logger.warning("%s is missing or damaged: it is written again from the run's own copy", folder / RUN)
    origin = find_origin(folder / CHECKPOINTS, named, facts.get("run_id"), has_record=bool(facts))
    for note in origin.notes:
        logger.warning(note)
    goes_on = origin.checkpoint is not None and not origin.is_foreign
    if not goes_on and _has_kept_nothing(folder, summary):
        raise _ended_error(folder)
    was_finished = summary.get("status") == "finished"
    return Resumption(
        run_id=origin.run_id,
        checkpoint=origin.checkpoint,
        is_foreign=origin.is_foreign,
        is_named=named is not None,
        changed=compare_settings(folder, config) if goes_on else {},
        images=find_images_before(folder, filter(None, [origin.checkpoint])) if goes_on else {},
        engine=keep_engine(config.data.engine, facts.get("engine"), config.augment.crop),
        kernels=find_kernels_before(facts.get("kernels"), goes_on),
        graph_failure=find_failure_before(facts.get("cuda_graph"), goes_on),
        device=facts.get("device"),
        pretrained=facts.get("pretrained"),
        was_finished=was_finished,
        ended_at=summary.get("step") if was_finished else None,
        starts=facts.get("starts") or (),
    )


def find_end(folder: Path, config: Config) -> dict[str, Any] | None:
    """summary.json of a run that has ended and has no checkpoint left, which is then said; else None.

    Args:
        folder: the run folder.
        config: the settings.

    Raises:
        UsageError: a setting differs that may not, or the run should train longer than it did.
    """
    summary = read_object(folder / SUMMARY)
    if not _has_kept_nothing(folder, summary):
        return None
    compare_settings(folder, config)
    if not is_over(summary, config.train):
        raise _ended_error(folder)
    if rank_from_environment() == 0:
        say(f"this run is finished ({folder}); use --new to start afresh")
    return summary


def _has_kept_nothing(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether the run in a folder has ended and kept no checkpoint, as it was told, or `runs --clean` was."""
    if summary.get("status") != "finished" or not read_run(folder) or list_checkpoints(folder / CHECKPOINTS):
        return False
    return bool(read_marker(folder).get(CLEANED)) or not build_config(*read_settings(folder)).checkpoint.keep


def _ended_error(folder: Path) -> UsageError:
    by = "runs --clean removed its checkpoints" if read_marker(folder).get(CLEANED) else "checkpoint.keep was 0"
    why = f"{by}, and none is there to go on from"
    return UsageError("this run has ended", where=str(folder), why=why, remedy="start afresh with --new")


# -- from where -------------------------------------------------------------------------------------------------------


def find_origin(folder: Path, named: str | None, run_id: str | None, has_record: bool) -> Origin:
    """The checkpoint that a start goes on from.

    Args:
        folder: the run's checkpoints/.
        named: the checkpoint that was asked for; None = the newest intact one.
        run_id: of the run in the folder; None = not known.
        has_record: whether anything is known of that run.

    Raises:
        CheckpointError: as `decide`.
    """
    if run_id is None and has_record:
        run_id = new_run_id()  # a run of an older version: its checkpoints do not say whose they are
    path, notes = choose_checkpoint(folder, named, run_id)
    is_foreign = path is not None and not is_inside(path, folder) and (run_id is None or read_run_id(path) != run_id)
    if path is not None and is_foreign and list_checkpoints(folder):
        remedy = "leave --resume_from out to go on, or use --new to begin afresh from it"
        why = "this one is of another run"
        raise CheckpointError("this run has checkpoints of its own", where=str(path), why=why, remedy=remedy)
    if run_id is None and path is not None and not is_foreign:
        notes = [*notes, f"{RUN} is not there or damaged: the run is taken to be that of {path.name}"]
        run_id = read_run_id(path)
    return Origin(run_id or new_run_id(), path, is_foreign, notes)


def check_beginning(folder: Path, resume_from: str) -> None:
    """Refuse a checkpoint that a new run cannot begin from, before the old run is set aside.

    Raises:
        UsageError: there is none of that name, or it lies in the folder that is to be set aside.
    """
    path = Path(resume_from)
    if not path.is_dir():
        why = "a new run begins from a checkpoint elsewhere"
        raise UsageError("no such checkpoint", where=resume_from, why=why, remedy="give its path, or leave out --new")
    if find_place(folder) in find_place(path).parents:
        why = "--new gives the folder around it another name"
        raise UsageError("this checkpoint goes away", where=resume_from, why=why, remedy="use another --output_dir")


# -- with what --------------------------------------------------------------------------------------------------------


def keep_precision(folder: Path, requested: str) -> Choice | None:
    """What `auto` meant when the run in a folder began; None = to be chosen. For every process, before they join.

    Args:
        folder: the run folder; it need not be there.
        requested: precision.
    """
    kept = read_run(folder).get("precision")
    return Choice(kept, KEPT) if requested == "auto" and kept is not None else None


def keep_engine(requested: str, kept: str | None, crop: str) -> Choice | None:
    """The engine that the run began with, or the reference where that one cannot go on; None = to be chosen.

    Args:
        requested: data.engine.
        kept: the engine that the run began with; None at its beginning.
        crop: augment.crop.
    """
    if requested != "auto" or kept is None:
        return None
    obstacle = find_obstacle(kept)
    if kept == "cache" and crop == "random_resized":
        obstacle = "this recipe needs the originals"
    if obstacle is None:
        return Choice(kept, KEPT)
    logger.warning("engine %s cannot go on with this run (%s): %s does", kept, obstacle, REFERENCE)
    return Choice(REFERENCE, f"{kept} cannot go on: {obstacle}")


def find_kernels_before(recorded: Mapping[str, str] | None, goes_on: bool) -> Kernels | None:
    """What a run computed with; older versions had one way, and did not say so.

    Args:
        recorded: run.json's `kernels`, if any.
        goes_on: whether there are updates of the run.
    """
    if recorded is None:
        return Kernels(*PLAIN, KEPT) if goes_on else None
    chosen = {name: recorded.get(name, plain) for name, plain in zip(CHOICES, PLAIN, strict=True)}
    return Kernels(**chosen, reason=KEPT)


def compare_settings(folder: Path, config: Config, is_whole: bool = False) -> Changed:
    """Compare the settings with those of a run that goes on.

    Args:
        folder: the run folder.
        config: the settings.
        is_whole: the run is one of several that must train alike: nothing of FROM_HERE_ON may change.

    Returns:
        The settings that differ and may.

    Raises:
        UsageError: a setting differs that may not; the line says which, and both values.
        CheckpointError: what the settings were is not known any more.
    """
    before, now = flatten(build_config(*read_settings(folder))), flatten(config)
    if not (folder / SETTINGS).is_file():
        logger.warning("%s is missing: it is written again", folder / SETTINGS)
    refused = list_refused(before, now, is_whole)
    if refused:
        raise UsageError(
            "this run was started with other settings",
            where=str(folder),
            why=refused,
            remedy="use those again, or start afresh with --new",
        )
    return {key: (before[key], now[key]) for key in now if before[key] != now[key]}


def list_refused(before: Mapping[str, Any], now: Mapping[str, Any], is_whole: bool) -> str:
    """The settings that differ and may not, with both values; "" where there is none.

    Args:
        before: the settings of the run, {dotted name: value}.
        now: those of its next start.
        is_whole: see `compare_settings`.
    """
    allowed = CHANGEABLE_SECTIONS if is_whole else CHANGEABLE_SECTIONS + FROM_HERE_ON
    changed = [key for key in now if before[key] != now[key]]
    refused = [key for key in changed if key not in CHANGEABLE and not _is_below(key, allowed)]
    return ", ".join(f"{key} was {before[key]}, is {now[key]}" for key in refused)


def _is_below(key: str, names: Iterable[str]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


# -- folds of a cross-validation --------------------------------------------------------------------------------------


def is_over(summary: Mapping[str, Any], train: TrainConfig) -> bool:
    """Whether a run has ended, as its summary.json says, and trained for as long as it now should."""
    if summary.get("status") != "finished":
        return False
    is_long_enough = summary.get("step", 0) >= (train.max_steps or 0) and summary.get("epoch", 0) >= (train.epochs or 0)
    return is_long_enough or bool(summary.get("stopped_early"))


def check_fold(run: Config, is_finished: bool, find_splits: Callable[[], Splits]) -> None:
    """Refuse to put a fold that was trained, or begun, into a table with folds of other settings or other images.

    Args:
        run: settings of the run that leaves this fold out.
        is_finished: whether it has ended.
        find_splits: gives the images which it would train on today.

    Raises:
        UsageError: it was trained with other settings.
        DataError: it was trained on other images.
        CheckpointError: what it was trained with, or on, is not known any more.
    """
    folder = Path(str(run.output_dir))
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    if not checkpoints and not is_finished:
        return
    compare_settings(folder, run, is_whole=True)
    if find_images_before(folder, checkpoints)["fingerprint"] != find_splits().fingerprint:
        why = "names, sizes or classes of files differ"
        remedy = "restore them or use --new"
        raise DataError("the images changed since this fold was trained", where=str(folder), why=why, remedy=remedy)
