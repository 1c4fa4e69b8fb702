"""`prepare pack`: writes the pictures of a run as WebDataset shards, so that a set is a few large files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from alexnet_dist.base.durable import check_space, disk_errors_named, tidy_folder, write_file, write_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import Progress
from alexnet_dist.base.terminal import COMMAND_JOINT
from alexnet_dist.base.text import align, format_bytes, quote_word
from alexnet_dist.cli.options import add_options, check_at_least_one, show
from alexnet_dist.cli.prepare.choice import add_choice_options, check_choice, choose
from alexnet_dist.cli.prepare.data_settings import DataSettings, read_config
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import DataConfig

EXAMPLES = """Write pictures as WebDataset shards: tars with pictures and labels, in a random order.

examples:
  python launch/prepare.py pack --data.root data/flowers --data.val val --out data/shards
  python launch/prepare.py pack --data.source manifest --data.root data/photos --data.train train.csv --out data/shards
  python launch/prepare.py pack --data.source parquet --data.root data/pets --num_classes 10 --per_class 50 --out part
  python launch/train.py --config imagenet_subset --data.source tar --data.root data/shards --data.val val ...

OUT gets train-0000.tar and so on, the same for val and test where they are named, _info.json with the shards of each
set, and classes.txt. The bytes of the pictures stay as they are. KEY.cls holds the position of the class in
classes.txt. What is read from the shards gives the same training as the pictures that went in. The same pictures, seed
and size give the same shards."""

INFO, CLASSES = "_info.json", "classes.txt"
LABELS = {"cls": ("cls",), "json": ("json",), "both": ("cls", "json")}


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare pack", EXAMPLES, "--out FOLDER [--config NAME] [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    add = parser.add_argument
    add("--out", type=str, metavar="FOLDER", help="folder for the shards; it is made")
    add("--shard_mb", type=int, default=500, help="size of a shard, in MB, at most")
    add("--seed", type=int, default=0, help="of the choice, and of the order in which pictures lie in the shards")
    add_choice_options(parser)
    add("--labels", default="cls", choices=list(LABELS), help="beside a picture: KEY.cls, KEY.json, or both")
    add("--overwrite", action="store_true", help="replace shards that are there")
    add_options(parser, "quiet", "debug")
    arguments = parse_arguments(argv, parser, DataSettings)
    options = arguments.options
    check_at_least_one(options, "shard_mb")
    if options.out is None or not options.out.strip():
        raise UsageError("--out is missing", where="command line", remedy="give the folder for the shards")
    if options.seed < 0:
        raise UsageError("--seed must be 0 or more", where="command line", why=f"got {options.seed}")
    config = read_config(options.config, arguments.given)
    pack(config.data, Path(options.out), LABELS[options.labels], options)
    return 0


def pack(data: DataConfig, out: Path, labels: Sequence[str], options: Namespace) -> None:
    """Write the sets that the settings name as shards, and print how many there are.

    Args:
        data: the settings.
        out: folder for the shards.
        labels: what lies beside a picture: cls, json or both.
        options: of the verb: shard_mb, seed, overwrite, and which classes and images.

    Raises:
        UsageError: shards are there, or the source has no image files.
        DataError: missing or damaged pictures.
        MachineError: too little space, or the folder cannot be written.
    """
    from alexnet_dist.assembly.sets import PART_KEYS, find_sets
    from alexnet_dist.data.sources.manifest_write import format_class_list
    from alexnet_dist.data.sources.tar_write import plan_shards, write_shards
    from alexnet_dist.runs.folder import start_logging

    start_logging(None)
    _check_out(out, data)
    there = _find_shards(out)
    if there and not options.overwrite:
        why, remedy = f"{there[0].name} is there", "give another --out, or --overwrite"
        raise UsageError("shards would be replaced", where=str(out), why=why, remedy=remedy)
    counts = check_choice(options, [key for key in PART_KEYS if getattr(data, key) is not None])
    found = zip(PART_KEYS, find_sets(data, seed=0, progress=True), strict=True)
    sets = {key: index for key, index in found if index is not None}
    if not all(index.has_files for index in sets.values()):
        why = f"source {data.source} has no image files"
        raise UsageError("nothing to pack", where="data.source", why=why, remedy="name folders, a list or archives")
    sets = choose(sets, options, counts)
    classes = format_class_list(sets["train"].classes)
    _make_folder(out, sets, there, "json" in labels)
    info, rows = {}, [("set", "shards", "images", "size")]
    for key, index in sets.items():
        shards = plan_shards(index, key, options.seed, options.shard_mb * 10**6, "json" in labels)
        with Progress(f"packing {key}", len(index)) as bar:
            sizes = write_shards(index, shards, out, labels, bar)
        lengths = [len(shard.samples) for shard in shards]
        names = [shard.name for shard in shards]
        info[key] = {"name": key, "num_samples": len(index), "filenames": names, "shard_lengths": lengths}
        rows.append((key, f"{len(shards):,}", f"{len(index):,}", format_bytes(sum(sizes))))
    write_file(out / CLASSES, classes, "out")
    write_json(out / INFO, {"splits": info}, "out")
    parts = "".join(f" --data.{key} {key}" for key in sets if key != "train")
    parts += "" if "cls" in labels else " --data.labels json"
    show(align(rows, "<>>>"))
    show(f"train with --data.source tar --data.root {quote_word(out)}{parts}", COMMAND_JOINT)


def _check_out(out: Path, data: DataConfig) -> None:
    """Refuse to write among the pictures, or in their place."""
    from alexnet_dist.assembly.sets import local_root

    root, folder = find_place(local_root(data) or "."), find_place(out)
    sets = [root / name for name in (data.train, data.val, data.test) if name is not None and (root / name).is_dir()]
    if root.is_relative_to(folder) or any(folder.is_relative_to(place) for place in sets):
        why = "the pictures lie there"
        raise UsageError("--out cannot be this folder", where=str(folder), why=why, remedy="give a folder elsewhere")


def _find_shards(out: Path) -> list[Path]:
    """The shards in a folder that are called like ours."""
    return sorted(path for key in ("train", "val", "test") for path in out.glob(f"{key}-[0-9]*.tar"))


def _make_folder(out: Path, sets: dict[str, SampleIndex], there: Sequence[Path], has_json: bool) -> None:
    """Make the folder, free of earlier shards, and see that there is room."""
    from alexnet_dist.data.sources.tar_write import count_bytes

    with disk_errors_named(out, "out"):
        out.mkdir(parents=True, exist_ok=True)
        tidy_folder(out)
        (out / INFO).unlink(missing_ok=True)  # written last: without it a set is not whole
        for path in there:
            path.unlink()
    needed = sum(count_bytes(index, has_json) for index in sets.values())
    check_space(out, needed, "to pack", "out")
