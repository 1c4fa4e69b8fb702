"""`prepare parity`: how far engines differ on a user's own images, and whether they may be exchanged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_json
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.machine import find_device
from alexnet_dist.base.places import find_cache_dir
from alexnet_dist.base.text import align, escape_text, join_names
from alexnet_dist.cli.options import (
    add_options,
    check_at_least_one,
    find_folder,
    hand_over,
    refuse_two_places,
    settle_out,
)
from alexnet_dist.cli.prepare.data_settings import DataSettings, read_config
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import DataConfig

if TYPE_CHECKING:
    import torch

    from alexnet_dist.data.engines.loader import Engine, Loader
    from alexnet_dist.data.engines.parity import Comparison, Recipe
    from alexnet_dist.data.files.scan import FileSet
    from alexnet_dist.data.index import SampleIndex

EXAMPLES = """Compare engines on your own images, stage by stage.

examples:
  python launch/prepare.py parity --data data/imagenet_subset/val
  python launch/prepare.py parity photos --engines torchvision cache --resize 256 --crop 224 --format json
  python launch/prepare.py parity --data.source parquet --data.root data/tables --data.val val --split val

FOLDER (or --data FOLDER) is a folder of images at any depth, an archive, a parquet file, or a folder of these. With
settings the images are those of training, of any source: --split says which set. The first engine is the reference.
Differences are in gray levels, of which there are 256. Stages decode and resize show whole pictures, crop what
evaluation sees, final what training sees. A file that cannot be decoded is listed; the exit code is then 3."""

ENGINES_COMPARED = ["torchvision", "dali"]
FOLDER = "--data"


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare parity", EXAMPLES, "FOLDER [options], or [--SETTING VALUE ...] [options]")
    parser.add_argument("paths", type=str, nargs="*", help="a folder of images, at any depth, an archive, ...")
    add_options(parser, "config")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"], help="the set, of settings")
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
    arguments = parse_arguments(_put_folder_first(argv), parser, DataSettings)
    options = arguments.options
    _check_options(options)
    out = settle_out(options)
    report = compare_images(
        find_images(options.paths, options.config, arguments.given, options.split),
        options.engines,
        recipe_values={name: int(getattr(options, name)) for name in ("resize", "crop", "channels", "seed")},
        limit=options.limit,
        device_name=options.device,
    )
    hand_over(FORMATS[options.format](report), out, options.format == "table")
    return 3 if report["bad_files"] else 0


def _put_folder_first(argv: Sequence[str]) -> list[str]:
    """A command line with the folder of `--data FOLDER` as its first word: among the settings, --data is a section."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(f"{FOLDER}=") else [word])]
    if FOLDER not in words[:-1]:
        return words
    at = words.index(FOLDER)
    return [words[at + 1], *words[:at], *words[at + 2 :]]


def _check_options(options: Any) -> None:
    if len(options.engines) < 2:
        raise UsageError("one engine has nothing to be compared with", remedy="give two or more after --engines")
    if len(options.paths) > 1:
        raise UsageError("more than one folder", where="command line", why=join_names(options.paths), remedy="give one")
    check_at_least_one(options, "resize", "crop", "limit")
    if options.crop > options.resize:
        why = f"--crop {options.crop}, --resize {options.resize}"
        raise UsageError("the crop is larger than the picture", why=why, remedy="give a smaller --crop")


@dataclass(frozen=True)
class Images:
    """The images that engines are compared on.

    Args:
        name: for the report.
        found: image files, not yet read, or the index of a set whose pictures are no files.
    """

    name: str
    found: FileSet | SampleIndex


def find_images(folders: Sequence[str], config_name: str | None, given: dict[str, Any], split: str) -> Images:
    """The images that a command line means.

    Args:
        folders: its words: a folder, archive, parquet file or pattern; none where settings say it.
        config_name: a configuration; None without one.
        given: settings, {dotted name: value}.
        split: of the settings: train, val or test.

    Raises:
        UsageError: nothing is named, or two places are, or no such set.
        DataError: nothing is there.
    """
    if folders:
        if config_name is not None:
            what, why = "a folder and --config exclude each other", f"{folders[0]} and {config_name}"
            raise UsageError(what, where="command line", why=why, remedy="give one of them")
        refuse_two_places(folders[0], given)
        place = find_folder(folders[0], given.get("data.cache_dir"))
        return Images(
            str(place), open_place(place, find_cache_dir(given.get("data.cache_dir")), given.get("data.columns.path"))
        )
    if config_name is None and not {"data.root", "data.source"} & given.keys():
        raise UsageError("no images are named", remedy="give a folder of images, or --data.root and --data.source")
    return _open_set(read_config(config_name, given).data, split)


def open_place(place: Path, cache_dir: Path, column: str | None = None) -> FileSet:
    """The images of a folder, at any depth; or of an archive or parquet file, several of them, or a folder of them.

    Args:
        place: the folder or file, or a pattern.
        cache_dir: where parquet is unpacked.
        column: of the pictures in parquet; None = found.

    Raises:
        DataError: there is no image.
    """
    from alexnet_dist.cli.picture_paths import find_pictures
    from alexnet_dist.data.files.scan import FileSet
    from alexnet_dist.data.sources.folders import list_images_below
    from alexnet_dist.data.sources.loose import Unpacking, find_container, list_containers, open_pictures

    packed: list[str] = []
    if place.is_dir():
        try:
            return FileSet(place, list_images_below(place))
        except DataError:
            packed = list_containers(place)
            if not packed:
                raise
    paths = packed or find_pictures([str(place)], None)
    if not os.path.lexists(paths[0]) and not find_container(paths[0]):
        remedy = "give a folder of images, an archive or a parquet file"
        raise DataError("no such folder", where=paths[0], remedy=remedy)
    sets = open_pictures(paths, Unpacking(cache_dir, column))
    if len(sets) > 1:
        why = "some images lie in archives, and others are files"
        raise DataError("images of two kinds", where=str(place), why=why, remedy="compare the ones, then the others")
    return sets[0]


def _open_set(data: DataConfig, split: str) -> Images:
    """A set as training has it."""
    from alexnet_dist.assembly.sets import PART_KEYS, find_sets, prepare_source
    from alexnet_dist.data.sources.source import has_part
    from alexnet_dist.runs.folder import start_logging

    start_logging(None)
    source, options = prepare_source(data, seed=0, progress=True)
    if not has_part(options, split):
        raise UsageError(f"there is no {split} set", where=f"data.{split}", remedy=f"set --data.{split}, or --split")
    name = " ".join(filter(None, (data.source, data.root, options.parts.get(split))))
    if source.list_files is not None:
        return Images(name, source.list_files(options, split))
    index = find_sets(data, seed=0, progress=True)[PART_KEYS.index(split)]
    assert index is not None
    return Images(name, index)


def compare_images(
    images: Images, names: Sequence[str], recipe_values: dict[str, int], limit: int, device_name: str = "auto"
) -> dict[str, Any]:
    """Compare engines on images; the report as plain JSON.

    Args:
        images: which.
        names: of the engines; the first is the reference.
        recipe_values: fields of `data.parity.Recipe`.
        limit: images that are compared, spread evenly over their list.
        device_name: auto, cpu or cuda.

    Raises:
        UsageError: an engine that does not exist.
        DataError: no image that can be read.
        MachineError: an engine that cannot run here, or no CUDA.
    """
    from alexnet_dist.data.engines.parity import Recipe, compare_engines

    engines, recipe = _find_engines(names), Recipe(**recipe_values)
    device = find_device(device_name)
    with tempfile.TemporaryDirectory() as scratch:
        index = _index_images(images.found, limit, recipe, Path(scratch))
        like = _make_loader(index, recipe, device, Path(scratch))
        comparisons = compare_engines(index, names, engines, like, recipe)
    bad_files = {bad.path: bad.reason for bad in index.bad_files}
    for comparison in comparisons:
        bad_files |= {_relative(path, index.root): reason for path, reason in comparison.bad_files.items()}
    return {
        "data": images.name,
        **recipe_values,
        "num_images": len(index),
        "bad_files": [{"path": path, "reason": reason} for path, reason in sorted(bad_files.items())],
        "comparisons": [_describe(comparison, index.root) for comparison in comparisons],
    }


def _find_engines(names: Sequence[str]) -> dict[str, Engine]:
    from alexnet_dist.data.engines.choose import ENGINES

    for name in names:
        if name not in ENGINES:
            raise UsageError(f"unknown engine {name!r}", where="--engines", remedy=f"use {', '.join(ENGINES)}")
    return ENGINES


def _index_images(found: FileSet | SampleIndex, limit: int, recipe: Recipe, scratch: Path) -> SampleIndex:
    """At most `limit` images, spread evenly over their list; those that cannot be used are listed."""
    import numpy as np

    from alexnet_dist.data.files.scan import FileSet
    from alexnet_dist.data.index import BadFile
    from alexnet_dist.data.plan import Augmentation, find_unfit

    num_images = len(found.files) if isinstance(found, FileSet) else len(found)
    picked = np.unique(np.linspace(0, max(num_images - 1, 0), min(limit, num_images)).astype(int)).tolist()
    index = _read_headers(found.take(picked), scratch) if isinstance(found, FileSet) else found.subset(picked)
    missing = found.missing if isinstance(found, FileSet) else []
    unfit = find_unfit(index.sizes, Augmentation(recipe.crop, recipe.resize))
    good = [number for number in range(len(index)) if number not in unfit]
    bad = [*missing, *((index.paths[number], reason) for number, reason in unfit.items())]
    bad_files = (*index.bad_files, *(BadFile(path, reason) for path, reason in bad))
    if not good:
        why = f"{bad_files[0].path}: {bad_files[0].reason}" if bad_files else "it is empty"
        raise DataError("no readable image", where=str(index.root), why=why, remedy="check the files")
    return replace(index.subset(good), bad_files=bad_files)


def _read_headers(images: FileSet, scratch: Path) -> SampleIndex:
    """An index of the images whose headers can be read, in one class; the others are listed."""
    import numpy as np

    from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
    from alexnet_dist.data.files.names import Names
    from alexnet_dist.data.files.scan import scan_headers
    from alexnet_dist.data.index import BadFile, SampleIndex

    headers = scan_headers(images, cache_dir=scratch, max_pixels=DEFAULT_MAX_PIXELS, progress=True)
    judged = zip(images.files, headers, strict=True)
    good = [number for number, header in enumerate(headers) if not header.reason]
    return SampleIndex(
        root=images.root,
        paths=Names.of(images.files[number].path for number in good),
        labels=np.zeros(len(good), np.int64),
        sizes=np.array([headers[number][:2] for number in good], np.int32).reshape(-1, 2),
        byte_sizes=np.array([images.files[number].byte_size for number in good], np.int64),
        is_plain=np.array([headers[number].is_plain for number in good], np.bool_),
        classes=("image",),
        bad_files=tuple(BadFile(file.path, header.reason) for file, header in judged if header.reason),
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
