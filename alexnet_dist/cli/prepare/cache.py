"""`prepare cache`: decodes and resizes the sets of a run once, for engine cache to read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.progress import Progress
from alexnet_dist.base.text import escape_text
from alexnet_dist.cli.options import add_options, import_shown, show
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.reader import load_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config, DataConfig

if TYPE_CHECKING:
    from alexnet_dist.data.engines.cache.store import Layout

EXAMPLES = """Decode and resize the images of a run once; --data.engine cache then reads rows of pixels.

examples:
  python launch/prepare.py cache --config imagenet_subset --data.root data/imagenet_subset
  python launch/prepare.py cache --config imagenet_subset --data.cache_dir /scratch/cache --augment.resize "[256, 256]"
  python launch/prepare.py cache --config imagenet_subset --check

The images are kept after augment.resize; crop random_resized needs the originals and cannot be cached. A build that was
stopped goes on where it was. --check reads everything and holds it against its sha256."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare cache", EXAMPLES, "--config NAME [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--check", action="store_true", help="build nothing; read what is there and check it")
    add_options(parser, "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    if options.config is None:
        raise UsageError("--config is missing", remedy="try --config digits")
    prepare_cache(load_config(options.config, arguments.given), check=options.check)
    return 0


def prepare_cache(config: Config, check: bool) -> None:
    """Build the caches of a run's sets, or check them, and print what they are.

    Args:
        config: the settings of the run.
        check: read and check what is there instead of building.

    Raises:
        UsageError: a recipe that cannot be cached.
        BadFilesError: images that cannot be decoded under `data.on_bad_file: fail`; all of them.
        DataError: no images; with `check`, no cache or a damaged one.
        MachineError: no space, no permission, or a decoding process was killed.
    """
    if config.data.workers != 0:
        start_worker_server()
    import_shown("alexnet_dist.assembly.loaders")
    from alexnet_dist.assembly.loaders import build_augmentation, build_plan
    from alexnet_dist.assembly.network import build_spec
    from alexnet_dist.assembly.sets import build_splits, cache_dir
    from alexnet_dist.data.engines.cache.store import check_cacheable, lay_out
    from alexnet_dist.runs.folder import start_logging

    start_logging(None)
    check_cacheable(config.augment.crop)
    data = config.data
    splits = build_splits(data, config.seed, progress=True)
    spec = build_spec(config.model, len(splits.train.classes))
    recipe = build_augmentation(config.augment, spec.image_size)
    found = splits.named()
    for index in found.values():
        build_plan(data, index, recipe, 1, config.seed, shuffle=False)  # an image smaller than the crop is said at once
    folders: set[Path] = set()
    for name, index in found.items():
        layout = lay_out(cache_dir(data), index, recipe.resize, spec.in_channels, data.max_pixels)
        started = time.monotonic()
        _check(layout) if check else _build(layout, data)
        _print_summary(name, layout, time.monotonic() - started)
        folders.add(layout.folder)
    _print_others(folders)


def _build(layout: Layout, data: DataConfig) -> None:
    from alexnet_dist.assembly.caches import choose_builders
    from alexnet_dist.data.engines.cache.build import build_store

    workers = choose_builders(data)
    build_store(layout, workers=workers, on_bad_file=data.on_bad_file, progress=True, repair=True)


def _check(layout: Layout) -> None:
    from alexnet_dist.data.engines.cache.store import iterate_checks

    with Progress(f"checking {layout.folder}", len(layout.index)) as bar:
        for num_images in iterate_checks(layout):
            bar.advance(num_images)


def _print_summary(name: str, layout: Layout, seconds: float) -> None:
    from alexnet_dist.data.engines.cache.store import list_bad, read_footers

    num_bad = sum(1 for _ in list_bad(layout, read_footers(layout)))
    counts = f"{len(layout.index):,} images, {num_bad:,} bad, {layout.total_bytes / 1e6:,.1f} MB, {seconds:.1f} s"
    show(f"{name:<6}{counts}: {escape_text(layout.folder)}")


def _print_others(folders: set[Path]) -> None:
    """Say what other caches take: images or recipes that change leave theirs behind."""
    from alexnet_dist.data.engines.cache.store import is_cache

    parent = next(iter(folders)).parent
    others = [folder for folder in parent.iterdir() if folder not in folders and is_cache(folder)]
    if others:
        size = sum(path.stat().st_size for folder in others for path in folder.iterdir()) / 1e6
        show(f"{len(others)} other caches in {escape_text(parent)} take {size:,.1f} MB; delete those that no run needs")
