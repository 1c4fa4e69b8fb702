"""The verb `serve` in a process of its own, which notes whom it talks to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.waiting import wait_until

# Whatever is connected to, or looked up, is written to a file.
_PROGRAM = """
import sys
file = open(sys.argv[1], "a", buffering=1)
def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print(event, arguments[-1] if event != "socket.getaddrinfo" else arguments[0], file=file)
sys.addaudithook(hear)
from alexnet_dist.base.signals import ending_at_once
with ending_at_once():
    from alexnet_dist.cli.main import run
    sys.exit(run("serve", sys.argv[2:]))
"""


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Args:
        address: of its page.
        process: that serves.
        talk: file of what it prints.
        contacts: file of whom it talks to.
    """

    address: str
    process: subprocess.Popen[bytes]
    talk: Path
    contacts: Path


@contextlib.contextmanager
def served(model: Path, folder: Path, *words: str) -> Iterator[Served]:
    """A model behind a free port, until the end of the block.

    Args:
        model: what is served.
        folder: for files of this server; its temporary files are in tmp/.
        words: of the command line.
    """
    (folder / "tmp").mkdir()
    talk, contacts = folder / "talk", folder / "contacts"
    command = [sys.executable, "-c", _PROGRAM, str(contacts), str(model), "--port", "0", "--device", "cpu", *words]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "HOME": str(folder)}
    with talk.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: "Serving at " in talk.read_text() or process.poll() is not None, 150)
        line = next((line for line in talk.read_text().splitlines() if line.startswith("Serving at ")), "")
        assert line, talk.read_text()
        yield Served(line.split()[2], process, talk, contacts)
    finally:
        process.kill()
        process.wait()
