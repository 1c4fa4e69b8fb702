"""`prepare index`: lists the pictures of archives once, for this machine or for all that read the archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.base.text import align, escape_text
from alexnet_dist.cli.options import add_options
from alexnet_dist.cli.prepare.data_settings import DataSettings, read_config
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import DataConfig

EXAMPLES = """List the pictures of archives: where each lies, its size, its label. Training does the same at its start.

examples:
  python launch/prepare.py index --data.source tar --data.root shards --data.train "train-{0000..0146}.tar"
  python launch/prepare.py index --data.source tar --data.root shards --data.val val --out shards

The list is kept in data.cache_dir. With --out it is also written into a folder: put into data.root, every machine that
reads these archives takes it from there, after a look at some pictures of each. No archive is extracted or changed."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare index", EXAMPLES, "[--config NAME] [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument(
        "--out", type=str, help="a folder for the lists, beside data.cache_dir; data.root is looked into"
    )
    add_options(parser, "quiet", "debug")
    arguments = parse_arguments(argv, parser, DataSettings)
    options = arguments.options
    config = read_config(options.config, arguments.given)
    if not SOURCES[config.data.source].reads_archives:
        why = f"source {config.data.source} reads no archives"
        raise UsageError("there is nothing to list", where="data.source", why=why, remedy="set --data.source tar")
    out = Path(options.out) if options.out is not None else None
    if out is not None and not out.is_dir():
        raise MachineError("no folder for --out", where=str(out), remedy="make it, or give a path elsewhere")
    index_archives(config.data, out)
    return 0


def index_archives(data: DataConfig, out: Path | None) -> None:
    """List the archives of all sets, and print how many pictures each has.

    Args:
        data: the settings.
        out: folder that the lists are also written to.

    Raises:
        DataError: an archive is missing or damaged.
        MachineError: a list cannot be written.
    """
    from alexnet_dist.assembly.sets import prepare_source
    from alexnet_dist.data.sources.tar import find_wanted
    from alexnet_dist.data.sources.tar_index import list_pictures, write_listing_out

    _, options = prepare_source(data, seed=0, progress=True)
    sets = {key: find_wanted(options, key) for key in options.parts}  # one that is missing is said before any work
    rows = [("set", "archives", "images", "bad", "labels")]
    for key, wanted in sets.items():
        listing, headers = list_pictures(wanted, options.rules)
        bad = sum(bool(row.reason or header.reason) for row, header in zip(listing.rows, headers, strict=True))
        good = len(listing.rows) - bad
        rows.append((key, f"{len(listing.names):,}", f"{good:,}", f"{bad:,}", listing.kind))
        if out is not None:
            path = write_listing_out(out, wanted, listing)
            print(f"{key} is listed in {escape_text(path)}, {path.stat().st_size / 1e6:,.1f} MB")
    print(align(rows, "<>>><"), end="")
