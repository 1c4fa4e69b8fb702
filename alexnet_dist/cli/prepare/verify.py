"""`prepare verify`: decodes every image of the sets, lists the bad ones, and remembers both for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from alexnet_dist.base.durable import write_csv
from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.machine import available_cores
from alexnet_dist.base.places import find_place
from alexnet_dist.base.text import escape_text
from alexnet_dist.cli.options import add_options, check_at_least_one, show
from alexnet_dist.cli.prepare.data_settings import DataSettings, read_config
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.data.files.verify import verify_files
from alexnet_dist.runs.ownership import is_own_table
from alexnet_dist.runs.targets import check_target
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import Config, DataConfig

EXAMPLES = """Decode every image of the sets with the reference decoder, and list all bad files with their reasons.

examples:
  python launch/prepare.py verify --config imagenet_subset
  python launch/prepare.py verify --data.root data/imagenet_subset --data.val val --out bad_files.csv
  python launch/prepare.py verify --data.source manifest --data.root data/photos --data.train train.csv --workers 32

What is found is remembered in data.cache_dir by path, size and time of change: a second run, or one after Ctrl-C,
decodes what is new. Training and evaluation use it: data.on_bad_file fail then names all bad files before the first
step, and skip leaves them out of the plan. With --config an image that the recipe cannot be carried out on (smaller
than the crop, or too large when it is resized) counts as bad, too. The exit code is 3 where a file is bad."""

OUT = "bad_files.csv"


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare verify", EXAMPLES, "[--config NAME] [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--workers", type=int, help="decoding threads (default: as many as there are cores)")
    parser.add_argument("--again", action="store_true", help="decode the files that are known to be good, too")
    parser.add_argument("--out", type=str, help=f"CSV of the bad files (default: {OUT}, in place of an earlier list)")
    add_options(parser, "overwrite", "quiet", "debug")
    arguments = parse_arguments(argv, parser, DataSettings)
    options = arguments.options
    check_at_least_one(options, "workers")
    config = read_config(options.config, arguments.given)
    data, recipe = config.data, config if options.config else None
    root = _find_image_root(data)
    is_earlier_list = options.out is None and is_own_table(Path(OUT))
    out = check_target(OUT if options.out is None else options.out, options.overwrite or is_earlier_list)
    _check_out(out, root)
    bad_files = verify_sets(data, root, options.workers or available_cores(), again=options.again, config=recipe)
    write_csv(out, ("path", "reason"), sorted(bad_files.items()), "out")
    place = escape_text(out)
    show(f"bad files are listed in {place}" if bad_files else f"no bad file; {place} holds a header alone")
    return 3 if bad_files else 0


def verify_sets(
    data: DataConfig, root: Path, workers: int, again: bool = False, config: Config | None = None
) -> dict[str, str]:
    """Verify the sets that the settings name, and print how many files each has.

    Args:
        data: the settings.
        root: see `sets.find_root`.
        workers: decoding threads.
        again: decode the files that are known to be good, too.
        config: a run's settings: images that its recipe cannot be carried out on are bad for it, too.

    Returns:
        Reasons of the bad files, by path relative to the root.

    Raises:
        DataError: a set's folder or manifest is missing, empty or damaged.
        MachineError: the cache folder cannot be written.
    """
    from alexnet_dist.assembly.sets import cache_dir
    from alexnet_dist.runs.folder import relative_path

    bad_files: dict[str, str] = {}
    for name, images in list(_list_sets(data)):  # a set that is missing is said before hours of work
        reasons = verify_files(
            images,
            cache_dir=cache_dir(data),
            max_pixels=data.max_pixels,
            workers=workers,
            progress=True,
            again=again,
        )
        if config is not None:
            reasons = [*map(_first, reasons, _judge_fit(config, name, images))]
        judged = zip((file.path for file in images.files), reasons, strict=True)
        bad = [*((path, reason) for path, reason in judged if reason), *images.missing]
        num_files = len(images.files) + len(images.missing)
        print(f"{name:<6}{num_files:>12,} images{len(bad):>10,} bad", flush=True)
        bad_files |= {relative_path(images.root / path, root): reason for path, reason in bad}
    return bad_files


def _first(reason: str, other: str) -> str:
    return reason or other


def _judge_fit(config: Config, name: str, images: FileSet) -> list[str]:
    """Why a run's recipe cannot be carried out on each image, "" where it can; nothing is remembered of that."""
    import numpy as np

    from alexnet_dist.assembly.loaders import build_augmentation
    from alexnet_dist.assembly.sets import cache_dir
    from alexnet_dist.data.files.scan import scan_headers
    from alexnet_dist.data.plan import find_unfit

    data = config.data
    headers = scan_headers(images, cache_dir=cache_dir(data), max_pixels=data.max_pixels, progress=False)
    recipe = build_augmentation(config.augment, config.model.image_size)
    is_held_out = data.val is None and (data.val_fraction > 0 or data.folds is not None)
    recipes = [recipe] if name == "train" else []
    if name != "train" or is_held_out:
        recipes.append(recipe.for_evaluation())
    side = recipe.crop_size  # stands for what could not be read
    sizes = np.array([(side, side) if header.reason else header[:2] for header in headers], np.int64).reshape(-1, 2)
    unfit: dict[int, str] = {}
    for some in recipes:
        unfit = find_unfit(sizes, some) | unfit
    return ["" if header.reason else unfit.get(number, "") for number, header in enumerate(headers)]


def _find_image_root(data: DataConfig) -> Path:
    from alexnet_dist.assembly.sets import prepare_source

    source, options = prepare_source(data, seed=0, progress=False)
    if source.list_files is None:
        why = f"source {data.source} has no image files"
        remedy = "use a source of image files, such as folder, manifest or tar"
        raise UsageError("there is nothing to verify", where="data.source", why=why, remedy=remedy)
    return source.find_root(options)


def _list_sets(data: DataConfig) -> Iterator[tuple[str, FileSet]]:
    from alexnet_dist.assembly.sets import prepare_source

    source, options = prepare_source(data, seed=0, progress=False)
    assert source.list_files is not None
    for key in options.parts:
        yield key, source.list_files(options, key)


def _check_out(out: Path, root: Path) -> None:
    if find_place(out).is_relative_to(find_place(root)):
        why = "nothing is written below data.root"
        raise UsageError("--out lies among the images", where=str(out), why=why, remedy="give a path elsewhere")
    if not find_place(out).parent.is_dir():
        raise MachineError("no folder for --out", where=str(out.parent), remedy="make it, or give a path elsewhere")
