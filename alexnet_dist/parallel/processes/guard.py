"""Who started this process, is that launcher still alive, and did it start what it was asked for?

No torch here: this runs before anything slow is imported.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath

from alexnet_dist.base.ending import leave
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import list_announced, tasks_of_srun, world_size_from_environment
from alexnet_dist.parallel.processes.environment import MPI_NAMES

logger = logging.getLogger("alexnet_dist")

ORPHAN_EXIT_CODE = 143
POLL_SECONDS = 0.5
LAUNCHERS = ("accelerate", "accelerate_cli.py", "accelerate.commands.accelerate_cli")  # followed by `launch`
TORCH_LAUNCHERS = ("torchrun", "torch.distributed.run", "run.py")
LAUNCHERS_ALONE = ("accelerate-launch", "accelerate.commands.launch", "launch.py")
GENERATIONS = 4  # a wrapper script or two may stand between the launcher and this process


def was_launched() -> bool:
    """Whether accelerate, torchrun, or srun with other tasks started this process."""
    # Some export the first one for good; only the launcher sets the second, too.
    is_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "ACCELERATE_DYNAMO_MODE" in os.environ
    return is_accelerate or "TORCHELASTIC_RUN_ID" in os.environ or tasks_of_srun() > 1


def end_with_parent() -> None:
    """End this process within a second of its parent's death.

    A launcher that is killed outright cannot stop its workers, and two of them would go on exchanging gradients for
    nobody. A thread that looks at the parent's number works on every system and needs no signal.
    """
    expected = os.getppid()

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(POLL_SECONDS)
        leave(ORPHAN_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def find_requests(commands: Iterable[Sequence[str]] | None = None) -> Iterator[tuple[int, str, str]]:
    """How many processes somebody asked for, where that stands, and how to get them.

    SLURM_NTASKS alone is no request: it describes the reservation, also in a shell or a notebook that runs inside one
    and in a batch script that asked for tasks to get cores. A task that `srun` started knows that it is one of several.

    Args:
        commands: the words of the processes above this one, the nearest first; None = look.
    """
    remedy = "without a GPU use ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {}"
    for words in list_ancestors() if commands is None else commands:
        count = _count_of_accelerate(words)
        if count is not None:
            yield count, "accelerate launch", remedy.format(count)
            break
    yield from _find_requests_of_torchrun()
    for names in MPI_NAMES:
        count = _number(os.environ.get(names[1], "1"))
        yield count, f"{names[1]}={count}", "mpirun the program itself, with MASTER_ADDR and MASTER_PORT set"
    if "SLURM_PROCID" in os.environ:
        yield from _find_requests_of_slurm()


def _find_requests_of_torchrun() -> Iterator[tuple[int, str, str]]:
    """What PET_*, Kubeflow's way to torchrun, and what torchrun itself tells its workers announce."""
    nodes, each = (os.environ.get(name, "1") for name in ("PET_NNODES", "PET_NPROC_PER_NODE"))
    remedy = "start with alexnet-dist launch train ... or torchrun, which read them, or unset them"
    # "1:4" asks for one to four machines.
    count = _number(nodes.partition(":")[0]) * _count_each(each)
    yield count, f"PET_NNODES={nodes}, PET_NPROC_PER_NODE={each}", remedy
    remedy = "start with alexnet-dist launch or torchrun, or unset it"
    for name, count in (("PET_NODE_RANK", _number(os.environ.get("PET_NODE_RANK", "0")) + 1), *list_announced()):
        yield count, f"{name}={os.environ.get(name)}", remedy


def _count_each(text: str) -> int:
    """Processes of a machine; "auto" and "gpu" ask for one on each GPU, without a GPU torchrun alone knows."""
    if text not in ("auto", "gpu"):
        return _number(text)
    import torch

    return max(1, torch.cuda.device_count())


def _find_requests_of_slurm() -> Iterator[tuple[int, str, str]]:
    tasks, nodes = os.environ.get("SLURM_STEP_NUM_TASKS"), os.environ.get("SLURM_JOB_NUM_NODES", "1")
    remedy = "srun the program itself, or one launcher a machine, as launch/slurm/train.sbatch does"
    if tasks is not None:
        yield _number(tasks), "tasks of srun", remedy
    else:  # the batch script's own shell, which runs on the first node alone
        yield _number(nodes), f"SLURM_JOB_NUM_NODES={nodes}", remedy


def is_elastic(commands: Iterable[Sequence[str]] | None = None) -> bool:
    """Whether machines may come and go: torchrun was told a range of their number, as in `--nnodes 1:4`.

    Args:
        commands: see `find_requests`.
    """
    told = [os.environ.get("PET_NNODES", "")]
    for words in list_ancestors() if commands is None else commands:
        names = [PurePath(word).name.removesuffix(".exe") for word in words]
        if any(name in TORCH_LAUNCHERS for name in names[:4]):
            pairs = pairwise([*words, ""])
            told += [word.partition("=")[2] or value for word, value in pairs if word.partition("=")[0] == "--nnodes"]
    return any(fewest != most for fewest, colon, most in (text.partition(":") for text in told) if colon)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 1


def list_ancestors() -> Iterator[list[str]]:
    """The command lines of the processes above this one, the nearest first, as far as they can be read."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents()[:GENERATIONS]:
            yield parent.cmdline()


def _count_of_accelerate(words: Sequence[str]) -> int | None:
    """The process count that a command line asks accelerate's launcher for; None if it asks for none.

    The launcher starts a single process for `--cpu --num_processes 2`, for a file of MULTI_CPU and for the default file
    that `accelerate config` wrote, and says nothing. Its own parser and its own reader of such files are asked.
    """
    names = [PurePath(word).name.removesuffix(".exe") for word in words]
    for i, name in enumerate(names[:4]):  # python, -m, accelerate.commands.launch; python, /bin/accelerate, launch
        if name in LAUNCHERS and names[i + 1 : i + 2] == ["launch"]:
            return _read_options(words[i + 2 :])
        if name in LAUNCHERS_ALONE and (name != "launch.py" or "accelerate" in words[i]):
            return _read_options(words[i + 1 :])
    return None


def _read_options(words: Sequence[str]) -> int | None:
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            options = launch_command_parser().parse_args(list(words))
            if options.num_processes is not None:
                return int(options.num_processes)
            if options.config_file is None and (options.cpu or not os.path.isfile(default_config_file)):
                return None
            return int(load_config_from_file(options.config_file).num_processes)
    except (Exception, SystemExit):  # noqa: BLE001 (the launcher read the same words and files, and did start us)
        return None


def check_process_count(joined: int, commands: Iterable[Sequence[str]] | None = None) -> None:
    """Refuse to train when fewer processes found each other than were asked for.

    Args:
        joined: processes that found each other.
        commands: see `find_requests`.

    Raises:
        MachineError: N strangers that would each train alone, or one process where several were asked for.
    """
    started = world_size_from_environment()
    if started != joined:
        raise MachineError(
            f"the launcher started {started} processes that do not know each other",
            why="no GPU for each",
            remedy=f"without a GPU use ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {started}",
        )
    for count, where, remedy in find_requests(commands):
        if count > joined:
            noun = "process" if joined == 1 else "processes"
            what = f"the launcher started {joined} {noun} instead of {count}"
            raise MachineError(what, where=where, remedy=remedy)
    reserved = _number(os.environ.get("SLURM_NTASKS", "1"))
    if reserved > joined and "SLURM_PROCID" in os.environ:
        logger.warning("SLURM reserved %d tasks, and this run has %d; see launch/slurm/train.sbatch", reserved, joined)
