"""The story of a run: one start of it, from its settings to its summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from alexnet_dist.assembly.caches import build_caches
from alexnet_dist.assembly.fetching import fetch_together
from alexnet_dist.assembly.graph import GraphChoice, Update, build_recorder, check_graph, choose_graph, settle_rates
from alexnet_dist.assembly.kernels import (
    Kernels,
    Subject,
    apply_kernels,
    check_kernels,
    choose_kernels,
    find_obstacle,
    settle_cudnn,
)
from alexnet_dist.assembly.learning import build_cadence, build_rule, build_saver, build_schedule, use_shadows
from alexnet_dist.assembly.loaders import (
    BatchSizes,
    Feed,
    build_feed,
    join_processes,
    place_model,
    settle_batch_sizes,
    share_batch,
)
from alexnet_dist.assembly.network import build_spec, check_can_be_built
from alexnet_dist.assembly.sets import Splits, build_splits, cache_dir, find_root
from alexnet_dist.assembly.strategy import check_strategy, cut_network, replicate_network
from alexnet_dist.assembly.trackers import check_mirrors, open_trackers
from alexnet_dist.assembly.weights import load_starting_weights
from alexnet_dist.base.errors import AlexNetDistError, InterruptedRunError
from alexnet_dist.base.machine import check_compiler
from alexnet_dist.base.progress import phase, set_level
from alexnet_dist.base.run_record import CHECKPOINTS
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.data.engines.cache.store import check_cacheable
from alexnet_dist.data.engines.choose import REFERENCE, check_engine, choose_engine
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.data.index import BadFilesError
from alexnet_dist.inference.model_folder import (
    find_model_step,
    pack_card,
    read_card,
    read_model_weights,
    save_model_folder,
)
from alexnet_dist.inference.model_page import drop_page
from alexnet_dist.models import AlexNetSpec, build_model
from alexnet_dist.parallel.peers import check_same_code
from alexnet_dist.parallel.processes.guard import is_elastic
from alexnet_dist.parallel.runtime import Runtime, lost_peers_named
from alexnet_dist.runs.announce import announce, say_goodbye
from alexnet_dist.runs.changed_images import read_record, settle_images, warn_about_newer
from alexnet_dist.runs.folder import (
    list_bad_files,
    open_run_folder,
    silence_logging,
    start_logging,
    write_bad_files,
)
from alexnet_dist.runs.image_list import Changes
from alexnet_dist.runs.own_folder import explain_taken, find_own_folder, settle_folder
from alexnet_dist.runs.pictures import picture_filters, picture_plots
from alexnet_dist.runs.preflight import check_signal
from alexnet_dist.runs.profile import build_profiler
from alexnet_dist.runs.recording import MODEL, Recording, begin_recording, describe_model, give_up_graph, summarize
from alexnet_dist.runs.report import REPORT
from alexnet_dist.runs.report_tracker import prepare_report
from alexnet_dist.runs.resume import Choice, Resumption, check_beginning, decide, find_end, keep_precision
from alexnet_dist.runs.same_data import find_same_images
from alexnet_dist.runs.shared_folder import check_folder_is_shared
from alexnet_dist.runs.start import End, Network, Start
from alexnet_dist.runs.targets import check_output_dir
from alexnet_dist.runs.validation_pictures import ValidationPictures
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Row, Trackers
from alexnet_dist.training.checkpoint import Checkpoint, check_same_classes, drop_checkpoints, load_checkpoint
from alexnet_dist.training.evaluate import evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.loop import Trainer
from alexnet_dist.training.state import TrainState, restore
from alexnet_dist.training.update_rules import merged_norms


def train(
    config: Config,
    new: bool = False,
    resume_from: str | None = None,
    may_move: bool = False,
    stop: Callable[[], object] | None = None,
    profile: int | None = None,
) -> dict[str, Any]:
    """Train as the settings say; what summary.json holds. `launch/train.py` and `alexnet_dist.train` call it.

    The processes of a launcher join here and part again. In the main thread signals ask the run to stop; in another
    thread they are left to the program.

    Args:
        config: the settings; output_dir must be set.
        new: keep an earlier run under another name and start afresh.
        resume_from: checkpoint to go on from; None = the newest intact one.
        may_move: nobody chose output_dir: where it is a run with other settings, take the next free name.
        stop: says before each batch whether the program wants the run to stop.
        profile: updates of which a profile is taken; None = no profile.

    Raises:
        AlexNetDistError: whatever a user can mend; see base/errors.py.
    """
    set_level(config.log.level)
    note = ""
    if may_move and not new and resume_from is None:
        config, note = find_own_folder(config, explain_taken)  # in each process: they join with the run's precision
    folder = Path(config.output_dir or "run")
    check_fold_is_chosen(config.data)
    if new and resume_from is not None:
        check_beginning(folder, resume_from)
    if config.data.workers != 0:
        start_worker_server()
    if not new and resume_from is None and (ended := find_end(folder, config)) is not None:
        return ended
    precision = None if new else keep_precision(folder, config.precision)
    with lost_peers_named(), contextlib.closing(join_processes(config, precision)) as runtime:
        check_same_code(runtime)
        config = replace(config, output_dir=runtime.on_main(partial(settle_folder, config, note)))
        end = run_session(config, runtime, StopRequest(stop), new, resume_from, profile)
    try:
        if runtime.is_main:
            _show_results(end)
    finally:
        end.trackers.finish(end.summary)
    if runtime.is_main:
        say_goodbye(end.start, end.summary)
    return end.summary


def run_session(
    config: Config,
    runtime: Runtime,
    stop: StopRequest,
    new: bool = False,
    resume_from: str | None = None,
    profile: int | None = None,
) -> End:
    """Go through one start of a run; what it came to. The processes stay together.

    Args:
        config: the settings; output_dir must be set.
        runtime: this process among the others.
        stop: the signals this process received.
        new: keep an earlier run under another name and start afresh.
        resume_from: the checkpoint to go on from; None = the newest intact one.
        profile: updates of which a profile is taken; None = no profile.

    Raises:
        CheckpointError: the checkpoint is damaged or another run's, or there are some and none is intact.
        UsageError: a setting differs that may not.
        DataError: missing or other images.
        InterruptedRunError: a signal asked to stop; the state is saved.
        DivergedError: a loss was not finite.
    """
    _check_machine(config, runtime)
    with _folder_held(config, runtime, new) as folder:
        resumption = runtime.on_main(lambda: decide(folder, config, resume_from))
        with phase("looking for the images", runtime.is_main):
            splits, changes = _find_images(config, runtime, folder, resumption)
        sizes = _settle_sizes(config, runtime, len(splits.train), resumption)
        spec = _settle_spec(config, runtime, len(splits.train.classes))
        feed = build_feed(config, runtime, splits.named(), spec, sizes)
        with phase("comparing data loaders", runtime.is_main):
            engine = resumption.engine or Choice(*runtime.on_main(partial(_choose_engine, config, feed)))
        with phase("comparing kernels", runtime.is_main):
            kernels = _settle_kernels(config, runtime, spec, sizes, resumption)
        graph = _choose_graph(config, runtime, resumption, profile)
        start = Start(
            config, folder, runtime, stop, resumption, splits, changes, sizes, spec, feed, engine, kernels, graph
        )

        loaded = load_checkpoint(resumption.checkpoint) if resumption.checkpoint is not None else None
        with phase("building the network", runtime.is_main):
            network = _build_network(start, is_fresh=loaded is None)
        if engine.name == "cache":
            build_caches(runtime, config.data, feed.load_all(engine.name), stop)
        optimizer = _build_optimizer(start, network)
        state = _restore(start, network, optimizer, loaded)
        recording = runtime.on_main(lambda: begin_recording(start, network, state.step, loaded))
        trackers = _open_trackers(start, recording)
        trainer = _build_trainer(start, network, optimizer, state, recording, trackers, profile)

        announce(start, network, trainer)
        stop.listen()  # from here on there is something to save
        with _ending_recorded(start, trainer):
            trainer.train()
            test_row = _test(start, trainer, recording.test_row)
        return End(start, _finish(start, trainer, test_row), trackers)


# -- before the first update ------------------------------------------------------------------------------------------


def _check_machine(config: Config, runtime: Runtime) -> None:
    """Refuse what this machine cannot do, before anything is looked for."""
    check_engine(config.data.engine)
    check_kernels(config.kernels, runtime.device)
    check_graph(config.train.cuda_graph, runtime.device)
    if config.compile:
        check_compiler(runtime.device.type == "cuda")
    if config.data.engine == "cache":
        check_cacheable(config.augment.crop)


@contextlib.contextmanager
def _folder_held(config: Config, runtime: Runtime, new: bool) -> Iterator[Path]:
    """Hold the run folder. Bad files that end the run are listed in it: they may be mended or removed."""
    folder = Path(config.output_dir or "run")
    with contextlib.ExitStack() as held:
        runtime.on_main(lambda: _take_folder(folder, config, new, held))
        check_folder_is_shared(runtime, folder)
        if not runtime.is_main:
            silence_logging()
        try:
            yield folder
        except BadFilesError as error:
            if runtime.is_main:
                list_bad_files(folder, error, find_root(config.data))
            raise


def _take_folder(folder: Path, config: Config, new: bool, held: contextlib.ExitStack) -> None:
    check_mirrors(config.tracking, folder)
    check_output_dir(str(folder), config.data)
    held.callback(open_run_folder(folder, new).release)
    start_logging(folder / "run.log")


def _find_images(config: Config, runtime: Runtime, folder: Path, resumption: Resumption) -> tuple[Splits, Changes]:
    """The images of the run in the folder, if it goes on, and which of them changed; see `settle_images`."""
    fetch_together(runtime, config.data)
    find = partial(build_splits, config.data, config.seed, progress=runtime.is_main)
    splits, changes, before = find_same_images(runtime, find), Changes(), resumption.images
    record = runtime.on_main(lambda: read_record(folder, before, splits.fingerprint))
    if record is not None:
        is_other_root = "data.root" in resumption.changed
        splits, changes = settle_images(splits, record, find_root(config.data), is_other_root)
    runtime.on_main(lambda: warn_about_newer(splits, before.get("newest_ns")))
    return splits, changes


def _settle_sizes(config: Config, runtime: Runtime, num_train: int, resumption: Resumption) -> BatchSizes:
    """How the batch is shared. Where machines come and go, any number of processes shares it, in the memory it had."""
    train, replicas = config.train, runtime.dp_size
    holders = "pairs of processes" if config.parallel.strategy == "towers" else "processes"
    if runtime.on_main(is_elastic) and train.global_batch_size <= num_train:
        return share_batch(train.global_batch_size, train.micro_batch_size, replicas, resumption.most_at_once)
    return settle_batch_sizes(train.global_batch_size, train.micro_batch_size, replicas, num_train, holders)


def _settle_spec(config: Config, runtime: Runtime, num_classes: int) -> AlexNetSpec:
    spec = build_spec(config.model, num_classes, config.parallel.exchange_at)
    check_can_be_built(spec)
    check_strategy(config.parallel, spec, runtime)
    return spec


def _choose_engine(config: Config, feed: Feed) -> tuple[str, str]:
    return choose_engine(config.data.engine, feed.load("train", REFERENCE))


def _settle_kernels(
    config: Config, runtime: Runtime, spec: AlexNetSpec, sizes: BatchSizes, resumption: Resumption
) -> Kernels:
    """What the network is computed with, the same in each process."""
    settle_cudnn(config.kernels.cudnn_benchmark)
    kept = resumption.keep_kernels(runtime.device.type)
    subject = Subject(spec, runtime.device, runtime.precision, config.channels_last, sizes.micro)
    strategy, rule = config.parallel.strategy, config.optimizer.name
    # Of every machine, here: one without a compiler would fail alone when the network is built.
    obstacle = next(filter(None, runtime.gather(find_obstacle(runtime.device))), "")
    choose = partial(choose_kernels, config.kernels, subject, kept, strategy, rule, obstacle=obstacle)
    return runtime.on_main(choose)


def _choose_graph(config: Config, runtime: Runtime, resumption: Resumption, profile: int | None) -> GraphChoice:
    """Whether whole updates are captured, the same in each process."""
    update = Update(
        device=runtime.device,
        precision=runtime.precision,
        strategy=config.parallel.strategy,
        compiled=config.compile,
        profiled=profile is not None,
    )
    return choose_graph(config.train.cuda_graph, update, resumption.graph_failure)


def _build_network(start: Start, is_fresh: bool) -> Network:
    """The network on its device; with its first weights, where the run begins afresh."""
    config, runtime = start.config, start.runtime
    model, pretrained, signal = build_model(start.spec, config.seed), start.resumption.pretrained, None
    if is_fresh and config.model.pretrained is not None:
        classes = start.splits.train.classes
        pretrained = load_starting_weights(runtime, model, config.model.pretrained, cache_dir(config.data), classes)
    if is_fresh:
        signal = runtime.on_main(lambda: check_signal(model, start.feed.load("train", REFERENCE)))
    partition = cut_network(config.parallel, model, runtime)
    place_model(model, runtime, config.channels_last)
    apply_kernels(model, start.kernels, config.parallel.strategy)
    return Network(model, partition, pretrained, signal)


def _build_optimizer(start: Start, network: Network) -> Optimizer:
    norms = merged_norms(network.find_cut(), start.runtime.sum_over_parts)
    optimizer = build_rule(start.config.optimizer, network.model, norms, start.kernels.update)
    settle_rates(start.graph, optimizer, start.runtime.device)
    return optimizer


def _restore(start: Start, network: Network, optimizer: Optimizer, loaded: Checkpoint | None) -> TrainState:
    """Where the run begins, before anything of it is touched."""
    if loaded is None:
        return TrainState()
    if start.resumption.is_foreign:
        check_same_classes(loaded, start.splits.train.classes)
    return restore(loaded, network.model, network.partition, optimizer, start.runtime.scaler)


def _open_trackers(start: Start, recording: Recording) -> Trackers:
    opened: list[Trackers] = []
    open_here = partial(open_trackers, start.config, start.folder, recording.metrics_bytes, recording.wandb_id)
    log = start.config.log
    others = {REPORT: prepare_report(start.folder, log.plots)} if log.report else {}
    start.runtime.on_main(lambda: opened.append(open_here(facts=recording.told, others=others)))
    return opened[0] if opened else open_here(is_main=False)


def _build_trainer(
    start: Start,
    network: Network,
    optimizer: Optimizer,
    state: TrainState,
    recording: Recording,
    trackers: Trackers,
    profile: int | None,
) -> Trainer:
    config, runtime, feed, folder = start.config, start.runtime, start.feed, start.folder
    how: Any = {"compiled": config.compile, "accumulates": start.sizes.accumulation > 1, "runtime": runtime}
    recorder = build_recorder(start.graph, runtime.device)
    with recorder.aside() if recorder is not None else contextlib.nullcontext():
        forward = replicate_network(config.parallel, network.model, network.partition, **how)
    forward = use_shadows(forward, optimizer, **how)
    bad_files = start.bad_files if runtime.is_main else set()  # once: each process would name the same ones
    loader = feed.load("train", start.engine.name)
    saver, skips = build_saver(config.checkpoint, runtime.device.type == "cuda"), config.data.on_bad_file == "skip"
    shows = config.log.plots and start.splits.val is not None
    return Trainer(
        runtime=runtime,
        model=network.model,
        forward=forward,
        partition=network.partition,
        optimizer=optimizer,
        schedule=build_schedule(config.schedule, config.optimizer.lr, start.steps_per_epoch, start.total_steps),
        loader=loader,
        val_loader=feed.load("val", start.engine.name) if start.splits.val is not None else None,
        cadence=build_cadence(config, start.total_steps),
        micro_batch_size=start.sizes.micro,
        seed=config.seed,
        gate=BatchGate(runtime, skips, start.stop, bad_files, start.root, saver.find_failure),
        folder=folder,
        trackers=trackers,
        save_model=lambda weights, note: _save_model(start, network, trackers, weights, note),
        describe_model=lambda note: pack_card(describe_model(start, network, note)),
        find_model_step=lambda: find_model_step(folder / MODEL),
        list_bad_files=partial(write_bad_files, folder, root=start.root),
        run_facts={"run_id": start.resumption.run_id, "data_fingerprint": start.splits.fingerprint},
        is_restored=start.resumption.checkpoint is not None,
        verdicts=recording.verdicts,
        state=state,
        profiler=build_profiler(start, network, profile, loader.workers),
        saver=saver,
        fused_loss=start.kernels.loss == "fused",
        spectator=ValidationPictures(start, trackers, lambda: describe_model(start, network, {})) if shows else None,
        recorder=recorder,
        give_up_graph=lambda failure: runtime.on_main(lambda: give_up_graph(start, failure)),
    )


def _save_model(
    start: Start, network: Network, trackers: Trackers, weights: dict[str, Tensor], note: dict[str, Any]
) -> None:
    save_model_folder(start.folder / MODEL, weights, describe_model(start, network, note))
    drop_page(start.folder / MODEL)  # it speaks of the weights before these
    if trackers.has_gallery:
        trackers.show(Pictures(note["step"], picture_filters(weights, start.spec)))
    trackers.keep(start.folder / MODEL, note, is_last=False)


# -- after the last one -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ending_recorded(start: Start, trainer: Trainer) -> Iterator[None]:
    """Say in summary.json that a run was stopped, or has failed."""
    try:
        yield
    except AlexNetDistError as error:
        status = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
        trainer.trackers.finish(summarize(start, trainer, status, test_row={}))
        raise


def _finish(start: Start, trainer: Trainer, test_row: Row) -> dict[str, Any]:
    """Write the summary, and drop checkpoints that nobody wants any more; what the summary holds."""
    summary = summarize(start, trainer, "finished", test_row)
    if start.config.checkpoint.keep == 0:
        start.runtime.on_main(lambda: drop_checkpoints(start.folder / CHECKPOINTS, start.resumption.run_id))
    return summary


def _show_results(end: End) -> None:
    """Draw the run, and give what there is to see, and model/, to the trackers. For the main process, alone."""
    start, step = end.start, end.summary["step"]
    if start.config.log.plots:
        from alexnet_dist.runs.plots import draw_after_training  # only a run that has ended needs it

        worst = draw_after_training(start, step)
        end.trackers.show(Pictures(step, picture_plots(start.folder), worst))
    with contextlib.suppress(AlexNetDistError):  # model/ may have gone meanwhile: the run has ended well
        source = read_card(start.folder / MODEL).source
        facts: Row = {key: source[key] for key in ("step", "epoch", "val_top1") if key in source}
        end.trackers.keep(start.folder / MODEL, facts, is_last=True)


def _test(start: Start, trainer: Trainer, earlier: Row | None) -> Row:
    """Read the test set once, with the weights of model/; its row.

    Args:
        start: of the run.
        trainer: which has trained.
        earlier: the row of a run that had ended before: it is logged again where it is still true.
    """
    if start.splits.test is None:
        return {}
    is_same_model = trainer.is_done_before and not trainer.is_model_new and not start.resumption.is_named
    if earlier is not None and is_same_model and start.has_same_images and earlier.get("step") == trainer.state.step:
        trainer.log(earlier)
        return earlier
    trainer.load_weights(read_model_weights(start.folder / MODEL), f"{MODEL}/")
    loader, where = start.feed.load("test", start.engine.name), f"test set, weights of {MODEL}/"
    result = evaluate(start.runtime, trainer.model, loader, trainer.gate.admit, name="testing", where=where)
    row = {"event": "test", "split": "test", "step": trainer.state.step, "epoch": trainer.epoch, **asdict(result)}
    trainer.log(row)
    return row
