"""Who started this process, and is that launcher still alive?

No torch here: this runs before anything slow is imported.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

from alexnet_dist.errors import MachineError

ORPHAN_EXIT_CODE = 143
POLL_SECONDS = 0.5


def rank_from_environment() -> int:
    """This process's rank as its launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size_from_environment() -> int:
    """The number of processes as the launcher set it; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def was_launched() -> bool:
    """Whether accelerate or torchrun started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def end_with_parent() -> None:
    """End this process within a second of its parent's death.

    A launcher that is killed outright cannot stop its workers, and two of them would go on exchanging gradients for
    nobody. A thread that looks at the parent's number works on every system and needs no signal.
    """
    expected = os.getppid()

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(POLL_SECONDS)
        os._exit(ORPHAN_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def check_half_set_environment() -> None:
    """Refuse an environment that would make torch wait for processes that nobody starts.

    Raises:
        MachineError: RANK without WORLD_SIZE, or the reverse.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if name in os.environ]
    if ("RANK" in present) != ("WORLD_SIZE" in present):
        missing = [name for name in names if name not in present]
        raise MachineError(
            "the launcher's environment is incomplete",
            why=f"{', '.join(present)} set, {', '.join(missing)} not",
            remedy="start with accelerate launch, or unset them",
        )


def requested_processes() -> int | None:
    """The process count that the accelerate command line above this process asked for; None if there is none.

    accelerate starts a single process for `--cpu --num_processes 2` and says nothing, so the request is read from the
    launcher's own command line (Linux).
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not any(word.endswith("accelerate") or "accelerate.commands" in word for word in words):
        return None
    words = words[: next((i for i, word in enumerate(words) if word.endswith(Path(sys.argv[0]).name)), len(words))]
    options = dict(itertools.pairwise(words))
    options |= dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    count = options.get("--num_processes") or options.get("--num-processes")
    if count is None and "--config_file" in options:
        count = _processes_in_file(options["--config_file"])
    return int(count) if count and count.isdigit() else None


def _processes_in_file(name: str) -> str | None:
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("num_processes:")]
    return found[0] if found else None


def check_process_count(joined: int) -> None:
    """Refuse to train when the launcher did not give what it was asked for.

    Args:
        joined: processes that found each other.

    Raises:
        MachineError: N strangers that would each train alone, or one process where several were asked for.
    """
    remedy = "without a GPU use ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
    started = world_size_from_environment()
    if started != joined:
        raise MachineError(
            f"the launcher started {started} processes that do not know each other",
            why="no GPU for each",
            remedy=remedy,
        )
    requested = requested_processes()
    if requested is not None and requested > 1 and joined == 1:
        raise MachineError(f"the launcher started 1 process instead of {requested}", remedy=remedy)
