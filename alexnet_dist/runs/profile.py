"""What `train --profile` leaves in the run folder: a table of where the time goes with its verdict, and a trace."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from alexnet_dist.base.durable import write_file
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import share_of_cores
from alexnet_dist.base.spans import BACKWARD, COMMUNICATION, COPIES, DATA_WAIT, FORWARD, LOSS, REST, UPDATE
from alexnet_dist.base.text import align
from alexnet_dist.models import LAYER_NAMES
from alexnet_dist.parallel.precision import computes_bf16
from alexnet_dist.runs.advice import Setup, find_faster_link, find_faster_loader, find_faster_network
from alexnet_dist.runs.start import Network, Start
from alexnet_dist.training.profile import LRN_AND_POOLING, POOLING, Profile, Profiler

logger = logging.getLogger("alexnet_dist")

FOLDER, TABLE, TRACE = "profile", "profile.txt", "trace.json.gz"
ROWS = (DATA_WAIT, COPIES, FORWARD, LOSS, BACKWARD, UPDATE, COMMUNICATION, REST)
PARTS = (*LAYER_NAMES, "convolutions", "LRN", LRN_AND_POOLING, POOLING, "ReLU", "dropout", "other")  # of a forward pass
LIMITING = 0.2  # a wait that takes more of an update is what to shorten first


def build_profiler(start: Start, network: Network, num_updates: int | None, workers: int) -> Profiler | None:
    """What records the updates in the main process; None elsewhere, and where none are wanted."""
    config, runtime = start.config, start.runtime
    if num_updates is None or not runtime.is_main:
        return None
    parallel = config.parallel
    travels_as = parallel.gradient_compression if parallel.strategy == "ddp" else parallel.exchange or runtime.precision
    setup = Setup(
        on_gpu=runtime.device.type == "cuda",
        processes=runtime.world_size,
        engine=start.engine.name,
        workers=workers,
        cores=share_of_cores(runtime.processes_here),
        is_cacheable=config.augment.crop != "random_resized",
        strategy=parallel.strategy,
        precision=runtime.precision,
        computes_bf16=computes_bf16(runtime.device.type == "cuda"),
        is_compressed=travels_as in ("bf16", "fp16"),
        is_compiled=config.compile,
    )
    return Profiler(
        num_updates,
        network.model,
        by_layer=not config.compile,
        averages=runtime.world_size > 1,
        device=runtime.device,
        report=partial(report_profile, start.folder / FOLDER, setup),
    )


def report_profile(folder: Path, setup: Setup, profile: Profile | None) -> None:
    """Write the table and the trace, and show the table. A disk that refuses them does not end the run.

    Args:
        folder: the run folder's profile/.
        setup: of the run.
        profile: of some updates; None where there were none.
    """
    if profile is None:
        logger.warning("profile   no update was recorded: the run had none left")
        return
    text = format_profile(profile, setup)
    for line in text.splitlines():
        logger.info(line)
    try:
        folder.mkdir(exist_ok=True)
        write_file(folder / TABLE, text.encode())
        if profile.trace is not None:
            write_file(folder / TRACE, profile.trace)
    except (OSError, MachineError) as error:
        logger.warning("profile   not written: %s", error)
        return
    logger.info("profile   %s", folder / TABLE)
    if profile.trace is not None:
        what = f"{profile.num_traced} updates, for ui.perfetto.dev and chrome://tracing"
        logger.info("trace     %s (%s)", folder / TRACE, what)


def format_profile(profile: Profile, setup: Setup) -> str:
    """The table: a row a span with its milliseconds and its share of an update, then the verdict."""
    last = profile.first + profile.num_updates - 1
    title = f"where the time goes in updates {profile.first} to {last}"
    title += f", process 0 of {setup.processes}" if setup.processes > 1 else ""
    rows = [("", "ms an update", "share")]
    for name in ROWS:
        within = {key: value for key, value in profile.seconds.items() if key.split(".")[0] == name}
        if within:
            rows.append(_format_row(name, sum(within.values()), profile.total))
        parts = {key.partition(".")[2] or "other": value for key, value in within.items()} if len(within) > 1 else {}
        rows += [_format_row(f"  {part}", parts[part], profile.total) for part in sorted(parts, key=PARTS.index)]
    rows.append(_format_row("all", profile.total, profile.total))
    lines = [title, *align(rows, "<>").splitlines(), judge(profile, setup)]
    if profile.num_updates < profile.num_wanted:
        lines.insert(1, f"{profile.num_wanted} were asked for: the run had no more")
    return "\n".join(lines) + "\n"


def _format_row(name: str, seconds: float, total: float) -> tuple[str, str, str]:
    return name, f"{1000 * seconds:.2f}", f"{seconds / total:.1%}" if total else ""


def judge(profile: Profile, setup: Setup) -> str:
    """One sentence: what limits the speed, and what to change."""
    loading, crossing = profile.share(DATA_WAIT, COPIES), profile.share(COMMUNICATION)
    if max(loading, crossing) < LIMITING:
        parts = {name: profile.share(name) for name in (FORWARD, BACKWARD, UPDATE)}
        largest = max(parts, key=parts.__getitem__)
        part = f"{1 - loading - crossing:.0%} of an update, {largest} {parts[largest]:.0%}"
        return f"The network limits the speed ({part}): next is {find_faster_network(setup)}."
    if loading >= crossing:
        return f"The data loader limits the speed ({loading:.0%} of an update): next is {find_faster_loader(setup)}."
    part = f"{crossing:.0%} of an update waits for the other processes"
    return f"The link between the processes limits the speed ({part}): next is {find_faster_link(setup)}."
