"""`launch`: starts another verb on several processes, through torchrun's launcher or Accelerate's."""

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
SUPERVISOR = "alexnet_dist.parallel.processes.launcher"
RECIPES = {  # what other programs start, by their names
    "slurm": ("launch/slurm", "train.sbatch"),
    "kubernetes": ("launch/kubernetes", "job.yaml"),
    "kubeflow": ("launch/kubernetes", "trainjob.yaml"),
    "skypilot": ("launch/skypilot", "train.yaml"),
}
PRINT = "--print"
TORCH, ACCELERATE = "torch.distributed.run", "accelerate.commands.launch"

EXAMPLES = """Start a verb on several processes. It ends with the exit code of the process that failed first.

examples:
  alexnet-dist launch train --config imagenet_subset
  alexnet-dist launch --nproc_per_node 2 train --config smoke --device cpu
  alexnet-dist launch --nnodes 2 --node_rank 0 --master_addr 192.0.2.1 train --config imagenet_subset
  alexnet-dist launch --nnodes 1:4 --master_addr 192.0.2.1 train --config imagenet_subset
  alexnet-dist launch all_gpus --num_processes 4 train --config imagenet_subset
  alexnet-dist launch two_machines --main_process_ip 192.0.2.1 --machine_rank 0 train --config imagenet_subset
  alexnet-dist launch slurm --print > train.sbatch

The words up to the verb ({verbs}) go to the launcher, the others to the verb. The launcher
is torchrun's, with its options and its PET_ variables; without --nproc_per_node it starts a process for each GPU. With
a first word `accelerate`, or a launch file (a path, or one of {files}), it is that of
`accelerate launch`. `--print` after {recipes} writes a file to start with.

With --nnodes 1:4 machines may come and go: the run goes on with the number there is.

SIGTERM and Ctrl-C reach every process: they save, and the launcher ends with 143 or 130. Mistakes that would come again
(exit codes 2, 3, 4, 6 and 7) are not repeated by --max_restarts. --debug after the verb shows the launcher's lines."""


def main(argv: Sequence[str]) -> int:
    """Replace this process by the launcher; returns only for --help and --print."""
    words = list(argv)
    if not words or words[0] in HELP:
        files = ", ".join(sorted(path.stem for path in shipped_folder(FOLDER).glob("*.yaml")))
        verbs, recipes = ", ".join(LAUNCHED_VERBS), " or ".join(RECIPES)
        print(format_description(EXAMPLES.format(files=files, verbs=verbs, recipes=recipes)))
        return 0 if words else 2
    if words[0] in RECIPES and not os.path.isfile(words[0]):
        print(read_recipe(words), end="")
        return 0
    command = build_command(words)
    # torch reads it as it is loaded. Sockets would say each try, and which names they lack; the launcher says the end.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    os.execv(sys.executable, [sys.executable, *command])


def read_recipe(words: Sequence[str]) -> str:
    """A file with which another program starts several machines.

    Args:
        words: its name, and --print.

    Raises:
        UsageError: other words.
    """
    name, *rest = words
    if rest != [PRINT]:
        remedy = f"alexnet-dist launch {name} {PRINT} writes a file whose first lines say how to start it"
        raise UsageError(f"{name} starts the processes itself", where="command line", remedy=remedy)
    folder, file = RECIPES[name]
    return (shipped_folder(folder) / file).read_text(encoding="utf-8")


def build_command(words: Sequence[str]) -> list[str]:
    """Python's arguments that run a launcher.

    Args:
        words: `torchrun`, `accelerate`, a launch file or nothing, options of the launcher, a verb, its options.

    Raises:
        UsageError: no such launch file, or no verb.
    """
    first, rest = words[0], list(words[1:])
    if first == "torchrun" or first.startswith("-") or first in LAUNCHED_VERBS:
        module, options = TORCH, rest if first == "torchrun" else list(words)
    elif first == "accelerate":
        module, options = ACCELERATE, rest
    else:
        module, options = ACCELERATE, ["--config_file", str(find_launch_file(first)), *rest]
    position = next((i for i, word in enumerate(options) if word in LAUNCHED_VERBS), None)
    if position is None:
        raise UsageError("no verb to launch", where="command line", remedy=f"give one of {', '.join(LAUNCHED_VERBS)}")
    return ["-m", SUPERVISOR, module, *options[:position], "--module", "alexnet_dist", *options[position:]]


def find_launch_file(name: str) -> Path:
    """The launch file that a user names.

    Raises:
        UsageError: there is none.
    """
    return find_yaml(name, (shipped_folder(FOLDER),), "launch file")
