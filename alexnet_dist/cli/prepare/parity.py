"""`prepare parity`: how far engines differ on a user's own images, and whether they may be exchanged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_json
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.machine import find_device
from alexnet_dist.base.text import align, escape_text
from alexnet_dist.cli.options import add_options, check_at_least_one, hand_over, settle_out
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:
    import torch

    from alexnet_dist.data.engines.loader import Engine, Loader
    from alexnet_dist.data.engines.parity import Comparison, Recipe
    from alexnet_dist.data.index import SampleIndex

EXAMPLES = """Compare engines on your own images, stage by stage.

examples:
  python launch/prepare.py parity --data data/imagenet_subset/val
  python launch/prepare.py parity --data photos --engines torchvision cache --resize 256 --crop 224 --format json

The first engine is the reference. Differences are in gray levels, of which there are 256. Stages decode and resize show
whole pictures, crop what evaluation sees, final what training sees. A file that cannot be decoded is listed; the exit
code is then 3."""

ENGINES_COMPARED = ["torchvision", "dali"]


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare parity", EXAMPLES, "--data FOLDER [options]")
    parser.add_argument("--data", type=str, help="a folder of images, at any depth, or an archive")
    parser.add_argument("--engines", type=str, nargs="+", default=ENGINES_COMPARED, help="two or more engines")
    parser.add_argument("--resize", type=int, default=256, help="shorter side, in pixels")
    parser.add_argument("--crop", type=int, default=224, help="side of the crop, in pixels")
    parser.add_argument("--channels", default="3", choices=["1", "3"], help="1 compares gray pictures")
    parser.add_argument("--limit", type=int, default=200, help="compare so many images, spread over the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random crops, flips and color noise")
    add_options(parser, "device")
    parser.add_argument("--format", default="table", choices=["table", "json"], help="of the report")
    parser.add_argument("--out", type=str, help="write the report to this file instead of the terminal")
    add_options(parser, "overwrite", "quiet", "debug")
    options = parse_options(argv, parser)
    _check_options(options)
    out = settle_out(options)
    report = compare_folder(
        Path(options.data),
        options.engines,
        recipe_values={name: int(getattr(options, name)) for name in ("resize", "crop", "channels", "seed")},
        limit=options.limit,
        device_name=options.device,
    )
    hand_over(FORMATS[options.format](report), out, options.format == "table")
    return 3 if report["bad_files"] else 0


def _check_options(options: Any) -> None:
    if options.data is None:
        raise UsageError("--data is missing", remedy="give a folder of images")
    if len(options.engines) < 2:
        raise UsageError("one engine has nothing to be compared with", remedy="give two or more after --engines")
    check_at_least_one(options, "resize", "crop", "limit")
    if options.crop > options.resize:
        why = f"--crop {options.crop}, --resize {options.resize}"
        raise UsageError("the crop is larger than the picture", why=why, remedy="give a smaller --crop")


def compare_folder(
    folder: Path, names: Sequence[str], recipe_values: dict[str, int], limit: int, device_name: str = "auto"
) -> dict[str, Any]:
    """Compare engines on the images below a folder; the report as plain JSON.

    Args:
        folder: of images, at any depth.
        names: of the engines; the first is the reference.
        recipe_values: fields of `data.parity.Recipe`.
        limit: images that are compared, spread evenly over the folder's list.
        device_name: auto, cpu or cuda.

    Raises:
        UsageError: an engine that does not exist.
        DataError: no such folder, or no image that can be read.
        MachineError: an engine that cannot run here, or no CUDA.
    """
    from alexnet_dist.data.engines.parity import Recipe, compare_engines

    engines, recipe = _find_engines(names), Recipe(**recipe_values)
    device = find_device(device_name)
    with tempfile.TemporaryDirectory() as scratch:
        index = _index_images(folder, limit, recipe, Path(scratch))
        like = _make_loader(index, recipe, device, Path(scratch))
        comparisons = compare_engines(index, names, engines, like, recipe)
    bad_files = {bad.path: bad.reason for bad in index.bad_files}
    for comparison in comparisons:
        bad_files |= {_relative(path, folder): reason for path, reason in comparison.bad_files.items()}
    return {
        "data": str(folder),
        **recipe_values,
        "num_images": len(index),
        "bad_files": [{"path": path, "reason": reason} for path, reason in sorted(bad_files.items())],
        "comparisons": [_describe(comparison, folder) for comparison in comparisons],
    }


def _find_engines(names: Sequence[str]) -> dict[str, Engine]:
    from alexnet_dist.data.engines.choose import ENGINES

    for name in names:
        if name not in ENGINES:
            raise UsageError(f"unknown engine {name!r}", where="--engines", remedy=f"use {', '.join(ENGINES)}")
    return ENGINES


def _index_images(folder: Path, limit: int, recipe: Recipe, scratch: Path) -> SampleIndex:
    """At most `limit` images, spread evenly over the folder's list; those that cannot be used are listed."""
    import numpy as np

    from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
    from alexnet_dist.data.files.names import Names
    from alexnet_dist.data.files.scan import FileSet, scan_headers
    from alexnet_dist.data.index import BadFile, SampleIndex
    from alexnet_dist.data.plan import Augmentation, find_unfit
    from alexnet_dist.data.sources.folders import list_images_below
    from alexnet_dist.data.sources.loose import open_pictures

    if folder.is_file():
        (found,) = open_pictures([str(folder)])
    elif folder.is_dir():
        found = FileSet(folder, list_images_below(folder))
    else:
        raise DataError("no such folder", where=str(folder), remedy="give --data a folder of images, or an archive")
    images = found.take(np.unique(np.linspace(0, len(found.files) - 1, limit).astype(int)).tolist())
    headers = scan_headers(images, cache_dir=scratch, max_pixels=DEFAULT_MAX_PIXELS, progress=True)
    files = images.files
    sizes = np.array([(recipe.crop, recipe.crop) if header.reason else header[:2] for header in headers])
    unfit = find_unfit(sizes, Augmentation(recipe.crop, recipe.resize))
    reasons = [header.reason or unfit.get(number, "") for number, header in enumerate(headers)]
    good = [number for number, reason in enumerate(reasons) if not reason]
    bad_files = tuple(BadFile(file.path, reason) for file, reason in zip(files, reasons, strict=True) if reason)
    if not good:
        why = f"{bad_files[0].path}: {bad_files[0].reason}"
        raise DataError("no readable image", where=str(folder), why=why, remedy="check the files")
    return SampleIndex(
        root=images.root,
        paths=Names.of(files[number].path for number in good),
        labels=np.zeros(len(good), np.int64),
        sizes=np.array([headers[number][:2] for number in good], np.int32),
        byte_sizes=np.array([files[number].byte_size for number in good], np.int64),
        is_plain=np.array([headers[number].is_plain for number in good], np.bool_),
        classes=("image",),
        bad_files=bad_files,
        containers=images.take(good).containers,
    )


def _make_loader(index: SampleIndex, recipe: Recipe, device: torch.device, scratch: Path) -> Loader:
    from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
    from alexnet_dist.data.engines.choose import ENGINES
    from alexnet_dist.data.engines.loader import Loader, make_normalization
    from alexnet_dist.data.plan import Augmentation, Plan

    return Loader(
        plan=Plan(index.sizes, Augmentation(recipe.crop, recipe.resize), 1, recipe.seed, shuffle=False),
        index=index,
        normalization=make_normalization(recipe.channels, 1, None, None),
        channels=recipe.channels,
        max_pixels=DEFAULT_MAX_PIXELS,
        shard_id=0,
        num_shards=1,
        device=device,
        channels_last=True,
        workers=0,
        engine=ENGINES["torchvision"],
        cache_dir=scratch,
    )


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _describe(comparison: Comparison, folder: Path) -> dict[str, Any]:
    refused = [
        {"path": _relative(path, folder), "engine": engine} for path, engine in sorted(comparison.refused.items())
    ]
    return {
        "reference": comparison.reference,
        "engine": comparison.other,
        "may_be_exchanged": comparison.may_be_exchanged,
        "verdict": _pass_verdict(comparison, folder),
        "refused_by_one": refused,
        "stages": [stage._asdict() for stage in comparison.stages],
    }


def _pass_verdict(comparison: Comparison, folder: Path) -> str:
    from alexnet_dist.data.engines.parity import MAXIMUM_LIMIT, MEAN_LIMIT

    final = comparison.stages[-1]
    if comparison.may_be_exchanged:
        return (
            f"they may be exchanged: final tensors differ by {final.mean:.2g} on average, {final.maximum:.2g} at most"
        )
    if comparison.refused:
        path, engine = min(comparison.refused.items())
        return f"they may not be exchanged: {engine} alone refuses '{_relative(path, folder)}'"
    stage = next(stage for stage in comparison.stages if stage.stage == comparison.first_difference)
    return (
        f"they may not be exchanged: after stage {stage.stage} they differ by {stage.mean:.2g} on average and "
        f"{stage.maximum:.2g} at most; {MEAN_LIMIT:g} and {MAXIMUM_LIMIT:g} are allowed"
    )


def format_table(report: dict[str, Any]) -> str:
    """For each pair of engines a line for each stage and the verdict; then the bad files."""
    lines = [f"{report['num_images']} images of {report['data']}, resize {report['resize']}, crop {report['crop']}"]
    for comparison in report["comparisons"]:
        lines += ["", f"{comparison['reference']} and {comparison['engine']}"]
        rows = [("stage", "images", "maximum", "mean", "worst image")]
        for stage in comparison["stages"]:
            numbers = (f"{stage['num_images']}", f"{stage['maximum']:.2f}", f"{stage['mean']:.4f}")
            rows.append((stage["stage"], *numbers, escape_text(stage["worst"])))
        lines += [*align(rows, "<>>><").splitlines(), comparison["verdict"]]
    if report["bad_files"]:
        lines += ["", f"{len(report['bad_files'])} bad files"]
        lines += [f"{bad['path']}: {bad['reason']}" for bad in report["bad_files"]]
    return "".join(escape_text(line) + "\n" for line in lines)


def format_report(report: dict[str, Any]) -> str:
    """The report as one JSON object."""
    return format_json(report, "the report", indent=2) + "\n"


FORMATS = {"table": format_table, "json": format_report}
