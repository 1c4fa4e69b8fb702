"""`ray_train`: training on the machines of a Ray cluster, which places the processes and starts them again."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.options import add_options, check_at_least_one, import_shown
from alexnet_dist.cli.train import add_images, begin_run
from alexnet_dist.settings.reader import new_parser, parse_arguments

EXAMPLES = """Train AlexNet on the machines of a Ray cluster.

examples:
  python launch/ray_train.py --config smoke --workers 2
  python launch/ray_train.py data/flowers --workers 8 --gpu --output_dir /shared/runs/flowers
  ray job submit --working-dir . -- python launch/ray_train.py --config smoke --output_dir /shared/smoke --workers 2

Settings, run folder, checkpoints and exit codes are those of `train`. The run folder must be a place that all machines
see, and the images must lie under the same path on each. A worker or a machine that is lost is replaced, and training
goes on from the newest checkpoint, with the bits of an undisturbed run where the number of workers stays the same.
Running the same command again resumes the run."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("ray_train", EXAMPLES, "[DATA_FOLDER] [--config NAME] [options] [--SETTING VALUE ...]")
    add_images(parser)
    parser.add_argument(
        "--workers", type=str, default="1", help="processes; 2:8 = as many of these as there is room for"
    )
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--cpus_per_worker", type=int, default=1, help="cores for each worker")
    parser.add_argument("--max_failures", type=int, default=3, help="so often workers start again; -1 = for ever")
    parser.add_argument(
        "--address", type=str, help="of the cluster (default: RAY_ADDRESS, or a new one on this machine)"
    )
    parser.add_argument("--wait_for_machines", action="store_true", help="let a cluster grow that is too small")
    add_options(parser, "print_config", "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    check_at_least_one(options, "cpus_per_worker")
    least, most = read_range(options.workers)
    if options.max_failures < -1:
        raise UsageError(f"--max_failures is {options.max_failures}", where="command line", remedy="give -1 or more")
    config = begin_run("ray_train", arguments)
    if config is None:
        return 0
    import_shown("alexnet_dist.runs.on_ray")
    from alexnet_dist.runs.on_ray import Workers, train_on_ray

    workers = Workers(
        least, most, options.cpus_per_worker, options.gpu, options.max_failures, waits=options.wait_for_machines
    )
    train_on_ray(config, workers, options.address)
    return 0


def read_range(text: str) -> tuple[int, int]:
    """The least and the largest number of `2` or `2:8`.

    Raises:
        UsageError: it is neither, or the first number is larger.
    """
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--workers is {text!r}", where="command line", remedy="give a number, or two as in 2:8")
    least, most = int(parts[0]), int(parts[-1])
    if not 1 <= least <= most:
        remedy = "give at least 1, and the smaller number first"
        raise UsageError(f"--workers is {text!r}", where="command line", remedy=remedy)
    return least, most
