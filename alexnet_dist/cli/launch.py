"""`launch`: starts another verb through `accelerate launch`, with one of the launch files that we ship."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.errors import UsageError
from alexnet_dist.settings.help import HELP, format_description
from alexnet_dist.settings.shipped import find_yaml, shipped_folder

LAUNCHED_VERBS = ("train", "evaluate", "crossval", "doctor")
FOLDER = "launch/accelerate"

EXAMPLES = """Start a verb on several processes.

examples:
  alexnet-dist launch all_gpus --num_processes 4 train --config imagenet_subset
  alexnet-dist launch two_machines --main_process_ip 192.0.2.1 --machine_rank 0 train --config imagenet_subset
  alexnet-dist launch cpu_processes train --config smoke --device cpu

The first word is a launch file: a path, or one of {files}. The words up to the verb ({verbs}) go to
`accelerate launch`, the others to the verb. From a checkout the same is
`accelerate launch --config_file launch/accelerate/FILE.yaml ... launch/VERB.py ...`."""


def main(argv: Sequence[str]) -> int:
    """Replace this process by accelerate's launcher; returns only for --help."""
    words = list(argv)
    if not words or words[0] in HELP:
        files = ", ".join(sorted(path.stem for path in shipped_folder(FOLDER).glob("*.yaml")))
        print(format_description(EXAMPLES.format(files=files, verbs=", ".join(LAUNCHED_VERBS))))
        return 0 if words else 2
    os.execv(sys.executable, [sys.executable, *build_command(words)])


def build_command(words: Sequence[str]) -> list[str]:
    """Python's arguments that run accelerate's launcher.

    Args:
        words: a launch file, options of `accelerate launch`, a verb, its options.

    Raises:
        UsageError: no such launch file, or no verb.
    """
    file = find_launch_file(words[0])
    position = next((i for i, word in enumerate(words) if i and word in LAUNCHED_VERBS), None)
    if position is None:
        raise UsageError("no verb to launch", where="command line", remedy=f"give one of {', '.join(LAUNCHED_VERBS)}")
    options, verb_words = words[1:position], words[position:]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*launcher, *options, "--module", "alexnet_dist", *verb_words]


def find_launch_file(name: str) -> Path:
    """The launch file that a user names.

    Raises:
        UsageError: there is none.
    """
    return find_yaml(name, (shipped_folder(FOLDER),), "launch file")
