"""One start of a training run: joins the processes, opens the folder, builds the parts."""

from __future__ import annotations

import dataclasses
import logging
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet_dist.assembly.caches import build_caches
from alexnet_dist.assembly.learning import build_cadence, build_rule, build_schedule
from alexnet_dist.assembly.loaders import (
    BatchSizes,
    build_augmentation,
    build_loader,
    build_normalization,
    build_plan,
    join_processes,
    list_unfit,
    place_model,
    settle_batch_sizes,
)
from alexnet_dist.assembly.network import build_spec, check_can_be_built
from alexnet_dist.assembly.sets import Splits, build_splits, cache_dir, find_root
from alexnet_dist.assembly.strategy import check_strategy, cut_network, replicate_network
from alexnet_dist.assembly.trackers import check_mirrors, open_trackers
from alexnet_dist.assembly.weights import load_starting_weights
from alexnet_dist.base.durable import write_file
from alexnet_dist.base.machine import check_compiler, describe_machine, find_git_commit, list_versions
from alexnet_dist.base.run_record import CHECKPOINTS, METRICS, is_step_name
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.data.engines.cache.store import check_cacheable
from alexnet_dist.data.engines.choose import REFERENCE, check_engine, choose_engine
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import BadFile, BadFilesError, SampleIndex
from alexnet_dist.data.plan import Plan
from alexnet_dist.inference.checkpoints import is_inside
from alexnet_dist.inference.model_folder import (
    ModelCard,
    describe_source,
    find_model_step,
    pack_card,
    read_model_weights,
    save_model_folder,
)
from alexnet_dist.models import AlexNet, build_model
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.runs.changed_images import (
    describe_images,
    find_newest,
    read_record,
    settle_images,
    warn_about_newer,
)
from alexnet_dist.runs.folder import (
    list_bad_files,
    open_run_folder,
    silence_logging,
    start_logging,
    store_settings,
    update_run_json,
    write_summary,
)
from alexnet_dist.runs.held_out import write_held_out
from alexnet_dist.runs.image_list import IMAGES, Changes, list_images, write_image_list
from alexnet_dist.runs.preflight import check_signal
from alexnet_dist.runs.resume import Choice, Resumption, decide, keep_precision
from alexnet_dist.runs.same_data import find_same_images
from alexnet_dist.runs.targets import check_output_dir
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.trackers import Row, Trackers, find_rows_until, read_rows
from alexnet_dist.training.checkpoint import (
    ABANDONED,
    Checkpoint,
    check_same_classes,
    load_checkpoint,
    prune_checkpoints,
    set_aside_newer,
)
from alexnet_dist.training.evaluate import evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.loop import Trainer
from alexnet_dist.training.update_rules import merged_norms

logger = logging.getLogger("alexnet_dist")


class Session:
    """One start of a run, from joining the processes to the summary.

    Args:
        config: the settings; output_dir must be set.
        new: keep an earlier run under another name and start afresh.
        resume_from: the checkpoint to go on from; None = the newest intact one.
        runtime: this process among the others, where they have joined before; they then stay together afterwards.
        stop: the signals this process received before; None = none yet.

    Raises:
        CheckpointError: the checkpoint is damaged or another run's, or there are some and none is intact.
        UsageError: a setting differs that may not.
        DataError: missing or other images.
    """

    def __init__(
        self,
        config: Config,
        new: bool,
        resume_from: str | None = None,
        runtime: Runtime | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.stop = stop or StopRequest()
        self.folder = Path(config.output_dir or "run")
        self.config = config
        precision = None if new else keep_precision(self.folder, config.precision)
        self.runtime = runtime or join_processes(config, precision)
        self._leave = self.runtime.close if runtime is None else lambda: None
        check_engine(config.data.engine)
        if config.compile:
            check_compiler(self.runtime.device.type == "cuda")
        if config.data.engine == "cache":
            check_cacheable(config.augment.crop)
        self.resumption = self.runtime.on_main(lambda: self._open(new, resume_from))
        self.origin = self.resumption.pretrained
        self.splits, self.image_changes = self._keep_images(self._find_images())
        self.sizes = self._settle_sizes()
        self.spec = build_spec(config.model, len(self.splits.train.classes), config.parallel.exchange_at)
        check_can_be_built(self.spec)
        check_strategy(config.parallel, self.spec, self.runtime)
        self.unfit = self.runtime.on_main(self._find_unfit)
        self.engine, self.engine_reason = self.runtime.on_main(self._choose_engine)
        self.steps_per_epoch = -(-len(self.splits.train) // self.sizes.global_)
        train = config.train
        self.total_steps = train.max_steps or self.steps_per_epoch * (train.epochs or 1)
        self.signal: dict[str, float] | None = None
        self._test_row: Row = {}

    def close(self) -> None:
        """Release the folder and leave the other processes."""
        if self.runtime.is_main:
            self.lock.release()
        self._leave()

    def _open(self, new: bool, named: str | None) -> Resumption:
        """Take the folder and decide how the run in it goes on."""
        check_mirrors(self.config.tracking, self.folder)
        check_output_dir(str(self.folder), self.config.data)
        self.lock = open_run_folder(self.folder, new)
        start_logging(self.folder / "run.log")
        return decide(self.folder, self.config, named)

    def _find_images(self) -> Splits:
        if not self.runtime.is_main:
            silence_logging()
        data, seed = self.config.data, self.config.seed
        try:
            find = partial(build_splits, data, seed, progress=self.runtime.is_main)
            return find_same_images(self.runtime, find)
        except BadFilesError as error:
            self.list_bad_files(error)
            raise

    def _keep_images(self, splits: Splits) -> tuple[Splits, Changes]:
        """The images of the run in the folder, if it goes on, and which of them changed; see `settle_images`."""
        facts, changes = self.resumption.images, Changes()
        record = self.runtime.on_main(lambda: read_record(self.folder, facts, splits.fingerprint))
        if record is not None:
            splits, changes = settle_images(splits, record, self._data_root(), "data.root" in self.resumption.changed)
        self.runtime.on_main(lambda: warn_about_newer(splits, facts.get("newest_ns")))
        return splits, changes

    def _find_unfit(self) -> set[BadFile]:
        """The images of all sets that the recipe cannot be carried out on, with full paths.

        Raises:
            BadFilesError: there are some, and bad files are not skipped.
        """
        unfit: set[BadFile] = set()
        for index in self._list_sets():
            try:
                plan = self._build_plan(index, training=index is self.splits.train)
            except BadFilesError as error:
                self.list_bad_files(error)
                raise
            found = list_unfit(index, plan)
            if found:
                first = f"{found[0].path}: {found[0].reason}"
                logger.warning(
                    "%d of %d images do not fit the recipe and are left out (%s)", len(found), len(index), first
                )
            unfit |= {BadFile(str(index.root / bad.path), bad.reason) for bad in found}
        return unfit

    def _list_sets(self) -> list[SampleIndex]:
        return list(self.splits.named().values())

    def list_bad_files(self, error: BadFilesError) -> None:
        """Write down which files ended the run: they may be mended or removed before it goes on."""
        if self.runtime.is_main:
            list_bad_files(self.folder, error, find_root(self.config.data))

    def _choose_engine(self) -> Choice:
        loader = self._build_loader(self.splits.train, training=True, engine=REFERENCE)
        return self.resumption.engine or Choice(*choose_engine(self.config.data.engine, loader))

    def _settle_sizes(self) -> BatchSizes:
        train, replicas, num_train = self.config.train, self.runtime.dp_size, len(self.splits.train)
        holders = "pairs of processes" if self.config.parallel.strategy == "towers" else "processes"
        return settle_batch_sizes(train.global_batch_size, train.micro_batch_size, replicas, num_train, holders)

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """What run.json says about the images: their fingerprint and counts."""
        num_bad_files, newest_ns = len(self._scanned_bad_files()), find_newest(self.splits)
        return {**describe_images(self.splits), "num_bad_files": num_bad_files, "newest_ns": newest_ns}

    def describe_plan(self) -> str:
        """What other images mean for the updates that follow, and for their evaluation."""
        before, now = self.resumption.images, self.data_facts
        counts = {key: (before.get(key), now[key]) for key in ("num_train", "num_val", "num_test")}
        told = [f"{key[4:]} has {new} images instead of {old}" for key, (old, new) in counts.items() if old != new]
        if counts["num_train"][0] == counts["num_train"][1]:
            return ", ".join(["the order of the training images stays", *told])
        return ", ".join([*told, f"the order is drawn anew, {self.steps_per_epoch} steps an epoch"])

    def _scanned_bad_files(self) -> set[BadFile]:
        scanned = {
            BadFile(str(index.root / bad.path), bad.reason) for index in self._list_sets() for bad in index.bad_files
        }
        return scanned | self.unfit

    # -- parts --------------------------------------------------------------------------------------------------------

    def build_trainer(self) -> Trainer:
        """Everything that trains, at step 0 or at the checkpoint."""
        config, runtime = self.config, self.runtime
        loaded = load_checkpoint(self.resumption.checkpoint) if self.resumption.checkpoint is not None else None
        model, partition = self._build_model(fresh=loaded is None)
        if self.engine == "cache":
            self._build_caches()
        norms = merged_norms(partition.find_cut(model), runtime.sum_over_parts)
        optimizer = build_rule(config.optimizer, model, norms)
        forward = replicate_network(
            config.parallel,
            model,
            partition,
            compiled=config.compile,
            accumulates=self.sizes.accumulation > 1,
            runtime=runtime,
        )
        trainer = Trainer(
            runtime=runtime,
            model=model,
            forward=forward,
            partition=partition,
            optimizer=optimizer,
            schedule=build_schedule(config.schedule, config.optimizer.lr, self.steps_per_epoch, self.total_steps),
            loader=self._build_loader(self.splits.train, training=True),
            val_loader=self._build_loader(self.splits.val, training=False) if self.splits.val is not None else None,
            cadence=build_cadence(config, self.total_steps),
            micro_batch_size=self.sizes.micro,
            seed=config.seed,
            gate=BatchGate(
                runtime, config.data.on_bad_file == "skip", stop=self.stop, bad_files=self._scanned_bad_files()
            ),
            folder=self.folder,
            data_root=self._data_root(),
            trackers=None,
            save_model=self._save_model,
            describe_model=lambda note: pack_card(self._describe_model(note)),
            find_model_step=lambda: find_model_step(self.folder / "model"),
        )
        if loaded is not None:
            if self.resumption.is_foreign:
                check_same_classes(loaded, self.splits.train.classes)
            trainer.restore(loaded)  # before anything of the run is touched
        self._begin_recording(trainer, loaded)
        return trainer

    def _begin_recording(self, trainer: Trainer, loaded: Checkpoint | None) -> None:
        """Cut what lies after the checkpoint, record this start, and open what is written while the run goes on."""
        runtime = self.runtime
        self._earlier_test_row = runtime.on_main(self._read_test_row)  # before opening the file cuts it back
        metrics_bytes = runtime.on_main(lambda: self._settle_line(trainer, loaded))
        facts = runtime.on_main(lambda: self._record_start(trainer.state.step, loaded))
        trainer.trackers = self._open_trackers(metrics_bytes, facts["wandb_id"])
        trainer.run_facts = {"run_id": self.resumption.run_id, "data_fingerprint": self.data_facts["fingerprint"]}
        if loaded is not None:
            trainer.settle_model()

    def _settle_line(self, trainer: Trainer, loaded: Checkpoint | None) -> int:
        """Set aside what the run leaves behind by going back; how many bytes of metrics.jsonl stay."""
        if loaded is None or not self.resumption.goes_on:
            return 0
        path, step, metrics = Path(loaded.where), trainer.state.step, self.folder / METRICS
        folder = self.folder / CHECKPOINTS
        if self.resumption.is_named:
            aside = set_aside_newer(folder, step, metrics, self.folder / "model")
            if aside is not None:
                logger.warning("checkpoints after step %d are left behind: they lie in %s from now on", step, aside)
            if path.parent.name.startswith(ABANDONED) and (path.parent / METRICS).is_file():
                write_file(metrics, (path.parent / METRICS).read_bytes())
        metrics_bytes, note = find_rows_until(metrics, loaded.state.get("metrics_bytes", -1), step)
        if note is not None:
            logger.warning(note)
        trainer.verdicts[path] = True
        if is_inside(path, folder) and is_step_name(path):
            prune_checkpoints(folder, path, self.config.checkpoint.keep, trainer.verdicts)
        return metrics_bytes

    def _build_model(self, fresh: bool) -> tuple[AlexNet, Partition]:
        config = self.config
        model = build_model(self.spec, config.seed)
        if fresh and config.model.pretrained is not None:
            self.origin = load_starting_weights(
                self.runtime, model, config.model.pretrained, cache_dir(config.data), self.splits.train.classes
            )
        if fresh:
            loader = self._build_loader(self.splits.train, training=True, engine=REFERENCE)
            self.signal = self.runtime.on_main(lambda: check_signal(model, loader))
        partition = cut_network(config.parallel, model, self.runtime)
        place_model(model, self.runtime, config.channels_last)
        return model, partition

    def _build_caches(self) -> None:
        loaders = [self._build_loader(index, training=index is self.splits.train) for index in self._list_sets()]
        try:
            build_caches(self.runtime, self.config.data, loaders, self.stop)
        except BadFilesError as error:
            self.list_bad_files(error)
            raise

    def _build_loader(self, index: SampleIndex, training: bool, engine: str | None = None) -> Loader:
        config, plan = self.config, self._build_plan(index, training)
        normalization = build_normalization(config.augment, self.spec.in_channels)
        engine = engine or self.engine
        return build_loader(self.runtime, config.data, index, plan, normalization, config.channels_last, engine)

    def _build_plan(self, index: SampleIndex, training: bool) -> Plan:
        config = self.config
        recipe = build_augmentation(config.augment, self.spec.image_size)
        return build_plan(
            config.data,
            index,
            recipe if training else recipe.for_evaluation(),
            global_batch_size=self.sizes.global_ if training else self.sizes.micro * self.runtime.dp_size,
            seed=config.seed,
            shuffle=training,
        )

    def _data_root(self) -> Path:
        return find_root(self.config.data)

    def _open_trackers(self, metrics_bytes: int, wandb_id: str) -> Trackers | None:
        opened: list[Trackers] = []
        config, folder = self.config, self.folder
        self.runtime.on_main(lambda: opened.append(open_trackers(config, folder, metrics_bytes, wandb_id)))
        return opened[0] if opened else None

    def _save_model(self, weights: dict[str, Tensor], note: dict[str, Any]) -> None:
        save_model_folder(self.folder / "model", weights, self._describe_model(note))

    def _describe_model(self, note: dict[str, Any]) -> ModelCard:
        return ModelCard(
            variant=self.config.model.variant,
            spec=self.spec,
            classes=self.splits.train.classes,
            evaluation=build_augmentation(self.config.augment, self.spec.image_size).for_evaluation(),
            normalization=build_normalization(self.config.augment, self.spec.in_channels),
            source={
                "run": self.folder.name,
                **note,
                **describe_source(dataclasses.asdict(self.config), self.origin, self.splits.fingerprint),
            },
        )

    # -- what the user sees -------------------------------------------------------------------------------------------

    def _record_start(self, step: int, loaded: Checkpoint | None) -> dict[str, Any]:
        runtime = self.runtime
        start: dict[str, Any] = {"step": step, "processes": runtime.world_size}
        if self.resumption.is_foreign and loaded is not None:
            start["begins_from"] = loaded.where
        if self.image_changes:
            start["images"] = {name: [path for _, path in keys] for name, keys in vars(self.image_changes).items()}
        if self.resumption.changed:
            start["changed"] = {key: list(values) for key, values in self.resumption.changed.items()}
        facts = {
            "run_id": self.resumption.run_id,
            "versions": list_versions(),
            "machine": describe_machine(),
            "git_commit": find_git_commit(),
            "processes": runtime.world_size,
            "strategy": self.config.parallel.strategy,
            "device": runtime.device.type,
            "precision": runtime.precision,
            "precision_reason": runtime.precision_reason,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
            "batch": str(self.sizes),
            "pretrained": self.origin,
            "data": self.data_facts,
            **({"signal": self.signal} if self.signal else {}),
            "held_out": None,
        }
        if self.splits.is_held_out and self.splits.val is not None:
            facts["held_out"] = write_held_out(self.folder, self.splits.val, self._data_root())
        if not (self._has_same_images and (self.folder / IMAGES).is_file()):
            write_image_list(self.folder, list_images(self.splits.named(), self._data_root()))
        values = update_run_json(self.folder, facts, start)
        store_settings(self.folder, self.config)  # after the record of what is new in them
        return values

    def test(self, trainer: Trainer) -> None:
        """Read the test set once, with the best weights."""
        if self.splits.test is None:
            return
        earlier = self._earlier_test_row
        if earlier is not None and self._is_as_tested(trainer, earlier):
            self._test_row = earlier
            trainer.log(self._test_row)
            return
        trainer.load_weights(read_model_weights(self.folder / "model"), "model/")
        loader, where = self._build_loader(self.splits.test, False), "test set, weights of model/"
        result = evaluate(self.runtime, trainer.model, loader, trainer.gate.admit, where=where)
        row = {"event": "test", "split": "test", "step": trainer.state.step, "epoch": trainer.epoch}
        self._test_row = {**row, **dataclasses.asdict(result)}
        trainer.log(self._test_row)

    def _is_as_tested(self, trainer: Trainer, row: Row) -> bool:
        """Whether a row on the test set is of the weights of model/ and of these images."""
        is_same_model = trainer.is_done_before and not trainer.is_model_new and not self.resumption.is_named
        return is_same_model and self._has_same_images and row.get("step") == trainer.state.step

    @property
    def _has_same_images(self) -> bool:
        return self.resumption.images.get("fingerprint") == self.splits.fingerprint

    def _read_test_row(self) -> Row | None:
        rows = read_rows(self.folder / METRICS) if self.resumption.was_finished else []
        return next((row for row in rows if row["event"] == "test"), None)

    def summarise(self, trainer: Trainer, status: str) -> dict[str, Any]:
        """Write summary.json and close the trackers."""
        state = trainer.state
        summary = {
            "status": status,
            "step": state.step,
            "epoch": trainer.epoch,
            "stopped_early": trainer.stopped_early,
            "best_top1": state.best_top1,
            "best_top5": state.best_top5,
            "best_epoch": state.best_epoch,
            "final_top1": state.final_top1,
            "test_top1": self._test_row.get("top1"),
            "test_top5": self._test_row.get("top5"),
            "images_per_second": state.samples_seen / state.train_seconds if state.train_seconds else None,
            "train_seconds": state.train_seconds,
            "world_size": self.runtime.world_size,
            "strategy": self.config.parallel.strategy,
            "precision": self.runtime.precision,
            "engine": self.engine,
        }
        if self.runtime.is_main:
            assert trainer.trackers is not None
            if status == "finished":
                trainer.trackers.sync()  # a run whose rows are gone has not ended well
            write_summary(self.folder, summary)
            trainer.trackers.finish(summary)
        return summary
