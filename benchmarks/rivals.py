"""What a user would pick instead, trained on the same pictures, on the same machine, in one run.

Protocol: every arm is a program in a process of its own (benchmarks/plain for the others, `launch/train.py` for ours).
It trains on a folder of pictures, and is stopped when its window is long enough; the programs take turns, A B C A B C.
The window begins after the batches that its loader had made ahead, and two more. Speed is the images trained in it over
its seconds: reading, decoding, network and update, without start, evaluation and saving. A full run has 3 rounds of
windows of at least 4 s and 3 updates. A row is the median over the rounds; a ratio is of images per second, round by
round. Each arm has a batch of 64, but the published ways have their own.

- imagenet_fp32, imagenet_bf16: PyTorch's ImageNet recipe; torchvision's AlexNet, ImageFolder, DataLoader with a worker
  for each core, random resized crops, SGD. bf16 is autocast.
- accelerate_bf16, dali_bf16, compiled_bf16: the same as an Accelerate script; with a plain DALI pipeline; with
  torch.compile(mode="max-autotune").
- ours_fp32, ours_bf16: the same network, crops and rule by this project, with engine dali where it is installed, else
  torchvision. ours_cache_bf16: from the cache, with random crops, as it has no random resized ones.
- NAME_published: the published system's own way, in fp32. NAME: this project's recipe of that name.

Pictures come from --data.root (train/CLASS/*), or are made: noise with a photograph's spectrum, 256x256. Copies of them
make an epoch that no window reaches the end of. An arm that cannot run says so in its row.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.photographs import write_photographs
from common.race import (
    Program,
    ProgramError,
    Progress,
    cut_window,
    lasts,
    measure_speed,
    our_program,
    plain_program,
    watch,
)
from common.report import (
    Report,
    describe_environment,
    describe_speed,
    has_bf16,
    new_parser,
    pick_effort,
    run_benchmark,
    write_json,
)
from common.timing import Spread, divide

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.machine import available_cores, check_compiler, find_device
from alexnet_dist.data.engines.choose import find_obstacle

BATCH_SIZE = 64
AHEAD = 2  # batches that a worker, or DALI, makes before they are asked for
SETTLED = 2  # more updates, until memory and caches are as they stay
MANY = 10**6
PUBLISHED = ("fruits", "fashion_mnist", "rmsprop_kfold", "cat_dog", "paper_notes")
CONFIGS = {"paper_notes": "paper_notes_cifar10"}  # the others are called as the system is
FP32, BF16 = ("--precision", "fp32"), ("--precision", "bf16")
WITHOUT_END = {  # neither an evaluation nor a checkpoint falls into a window
    "data.val": "null",
    "data.test": "null",
    "data.val_fraction": 0,
    "train.epochs": 1000,
    "checkpoint.every_steps": MANY,
    "log.every_steps": 1,  # as the others read their loss after each update
}
SAME_RECIPE = {  # as PyTorch's recipe for ImageNet has it
    "model.variant": "torchvision",
    "augment.resize": "null",
    "augment.crop": "random_resized",
    "augment.lighting": "null",
    "augment.pixel_range": 1,
    "optimizer.lr": 0.01,
    "optimizer.weight_decay": 0.0001,
    "optimizer.bias_lr_factor": 1,
    "optimizer.bias_weight_decay": "null",
    "schedule.name": "constant",
    "schedule.warmup_steps": 0,
}
FROM_CACHE = {"augment.resize": 256, "augment.crop": "random"}
TARGETS = {
    "ours_fp32/imagenet_fp32": "target 1.5",
    "ours_bf16/imagenet_fp32": "target 3 where the CPU computes in bf16",
    "ours_bf16/dali_bf16": "",
    "ours_bf16/imagenet_bf16": "",
    "ours_bf16/accelerate_bf16": "",
    "ours_bf16/compiled_bf16": "",
    "ours_cache_bf16/imagenet_bf16": "other crops",
    **{f"{name}/{name}_published": "" for name in PUBLISHED},
}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        rounds: windows of each arm.
        seconds: least length of a window.
        updates: least updates in a window.
        limit: seconds after which an arm is stopped.
        num_images: pictures of the folder, with copies.
        side: of made pictures, in pixels.
    """

    rounds: int
    seconds: float
    updates: int
    limit: float
    num_images: int
    side: int


@dataclass(frozen=True)
class Arm:
    """A program and what its window leaves out.

    Args:
        program: what trains.
        batch_size: images of an update.
        ahead: batches that its loader makes before they are asked for.
        find_obstacle: why it cannot run here, "" where it can.
    """

    program: Program
    batch_size: int
    ahead: int
    find_obstacle: Callable[[], str] = lambda: ""


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser(
        "rivals", "Other ways to train, and ours, side by side.", quick="rough figures within 6 minutes"
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms to measure; default: all")
    parser.add_argument("--batch_size", type=int, help="of the arms that have no size of their own; default: 64")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """All arms, round by round."""
    device = find_device("auto")
    faster = 10 if device.type == "cuda" else 1
    effort = pick_effort(
        options,
        full=Effort(3, 4.0, 3, limit=300, num_images=4000 * faster, side=256),
        quick=Effort(1, 2.0, 2, limit=200, num_images=2000 * faster, side=256),
        tiny=Effort(1, 0.0, 1, limit=300, num_images=64, side=64),
    )
    report = Report(describe_environment(options, device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, is_made = bring_pictures(options.data_root, folder / "pictures", effort)
        report.environment["images"] = {"made": is_made, "count": effort.num_images}
        batch_size = options.batch_size or pick_effort(options, full=BATCH_SIZE, quick=BATCH_SIZE, tiny=2)
        arms = build_arms(pictures, folder / "cache", batch_size, device.type == "cuda", options.tiny)
        race(report, pick_arms(arms, options.only), effort, folder, options.out)
    return report


# -- pictures ---------------------------------------------------------------------------------------------------------


def bring_pictures(root: Path | None, folder: Path, effort: Effort) -> tuple[Path, bool]:
    """A folder with train/CLASS/*, and whether its pictures are made: copies of the user's, or noise.

    Raises:
        UsageError: the user's folder has no pictures in train/CLASS.
    """
    if root is None:
        few = min(effort.num_images, 256)
        write_photographs(folder / "few", few, effort.side, effort.side)
        root = folder / "few"
    files = sorted(path for path in (root / "train").glob("*/*") if path.is_file())
    if not files:
        raise UsageError("no pictures", where=str(root / "train"), remedy="give a folder with train/CLASS/*.jpg")
    copied = folder / "copies"
    for number in range(effort.num_images):
        source = files[number % len(files)]
        target = copied / "train" / source.parent.name / f"{number // len(files):03d}-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return copied, root.parent == folder


# -- arms -------------------------------------------------------------------------------------------------------------


def build_arms(pictures: Path, cache: Path, batch_size: int, on_gpu: bool, tiny: bool) -> dict[str, Arm]:
    """Every arm; what a ratio compares stands close together."""
    cores = available_cores()
    engine = "torchvision" if find_obstacle("dali") else "dali"
    sizes = ("--batch_size", str(batch_size))
    usual = (*sizes, "--workers", str(cores))
    our_ahead = AHEAD * cores if on_gpu and engine == "torchvision" else AHEAD  # one worker shares a CPU's cores

    def plain(script: str, *words: str, ahead: int = AHEAD * cores, obstacle: Callable[[], str] = lambda: "") -> Arm:
        return Arm(plain_program(script, pictures, *usual, *words), batch_size, ahead, obstacle)

    def ours(precision: str, **changes: Any) -> Arm:
        settings = {**WITHOUT_END, **SAME_RECIPE, "data.engine": engine, "precision": precision, **changes}
        settings |= {"data.cache_dir": cache, "train.global_batch_size": batch_size}
        return Arm(our_program("imagenet_subset", pictures, settings), batch_size, our_ahead)

    arms = {
        "imagenet_fp32": plain("imagenet.py", *FP32),
        "ours_fp32": ours("fp32"),
        "imagenet_bf16": plain("imagenet.py", *BF16),
        "accelerate_bf16": plain("with_accelerate.py", *BF16),
        "compiled_bf16": plain("imagenet.py", *BF16, "--compile", obstacle=explain_no_compiler),
        "dali_bf16": plain("with_dali.py", *BF16, ahead=AHEAD, obstacle=lambda: find_obstacle("dali") or ""),
        "ours_bf16": ours("bf16"),
        "ours_cache_bf16": ours("bf16", **{**FROM_CACHE, "data.engine": "cache"}),
    }
    for name in PUBLISHED:
        arms[f"{name}_published"], arms[name] = build_pair(name, pictures, cache, sizes if tiny else ())
    return arms


def build_pair(name: str, pictures: Path, cache: Path, sizes: Sequence[str]) -> tuple[Arm, Arm]:
    """A published way, and this project's recipe that stands for it; both with the published batch."""
    batch_size = int(sizes[1]) if sizes else {"fruits": 64, "paper_notes": 128}.get(name, 32)
    published = plain_program("published.py", pictures, "--name", name, "--batch_size", str(batch_size))
    settings = {**WITHOUT_END, "data.cache_dir": cache, "train.global_batch_size": batch_size}
    recipe = our_program(CONFIGS.get(name, name), pictures, settings)
    return Arm(published, batch_size, 0), Arm(recipe, batch_size, AHEAD)


def pick_arms(arms: Mapping[str, Arm], only: Sequence[str] | None) -> dict[str, Arm]:
    """Those that are asked for.

    Raises:
        UsageError: a name that no arm has.
    """
    strange = sorted(set(only or ()) - set(arms))
    if strange:
        raise UsageError(
            f"no arm {strange[0]}", where="--only", why=f"there are {', '.join(arms)}", remedy="name these"
        )
    return {name: arm for name, arm in arms.items() if only is None or name in only}


def explain_no_compiler() -> str:
    """Why torch.compile cannot run here; "" where it can."""
    try:
        check_compiler(find_device("auto").type == "cuda")
    except MachineError as error:
        return str(error)
    return ""


# -- the race ---------------------------------------------------------------------------------------------------------


def race(report: Report, arms: Mapping[str, Arm], effort: Effort, folder: Path, out: Path | None) -> None:
    """Start every arm in turn, and write what is known after each round."""
    obstacles = {name: arm.find_obstacle() for name, arm in arms.items()}
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    starts: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(effort.rounds):
        for name, arm in arms.items():
            if obstacles[name]:
                continue
            try:
                progress = run_arm(arm, effort, folder / f"{name}-{number}")
            except ProgramError as error:
                obstacles[name] = str(error)
                continue
            finally:
                shutil.rmtree(folder / f"{name}-{number}", ignore_errors=True)
            speeds[name].append(measure_speed(cut_window(progress.points, count_skipped(arm))))
            starts[name].append(progress.first or 0.0)
            print(f"round {number + 1}, {name}: {speeds[name][-1]:.1f} images/s", flush=True)
        fill_report(report, speeds, starts, obstacles)
        if out is not None:
            write_json(out, asdict(report))


def count_skipped(arm: Arm) -> int:
    """Images that pass before the window."""
    return (arm.ahead + SETTLED - 1) * arm.batch_size


def run_arm(arm: Arm, effort: Effort, folder: Path) -> Progress:
    """Train until the window is long enough.

    Raises:
        ProgramError: the program failed, or was too slow.
    """

    def is_enough(progress: Progress) -> bool:
        window = cut_window(progress.points, count_skipped(arm))
        return lasts(window, effort.seconds, effort.updates * arm.batch_size)

    progress = watch(arm.program, folder, is_enough, effort.limit)
    if not is_enough(progress):
        raise ProgramError(f"no window within {effort.limit:.0f} s")
    return progress


def fill_report(
    report: Report,
    speeds: Mapping[str, Sequence[float]],
    starts: Mapping[str, Sequence[float]],
    obstacles: Mapping[str, str],
) -> None:
    """Rows and ratios of the rounds until now."""
    report.rows.clear()
    for name, values in speeds.items():
        row: dict[str, Any] = {"arm": name}
        if obstacles[name]:
            row["missing"] = obstacles[name]
        else:
            row |= {**describe_speed(Spread.of(values)), "start_seconds": Spread.of(starts[name]).median}
        report.rows.append(row)
    amx = "computes" if has_bf16(report.environment) else "does not compute"
    for ratio, target in TARGETS.items():
        ours, rival = ratio.split("/")
        if {ours, rival} <= set(speeds) and not obstacles[ours] and not obstacles[rival]:
            what = "; ".join(filter(None, ["images per second, end to end", target]))
            what += f"; this CPU {amx} in bf16" if "bf16" in target and report.environment["device"] == "cpu" else ""
            report.add_ratio(ratio, divide(speeds[ours], speeds[rival]), what)


if __name__ == "__main__":
    sys.exit(main())
