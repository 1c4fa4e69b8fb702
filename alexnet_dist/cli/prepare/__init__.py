"""`prepare`: what is done with images before a run reads them; a module for each kind of preparation."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from alexnet_dist.base.errors import UsageError
from alexnet_dist.settings.help import HELP, format_description
from alexnet_dist.settings.nearest import find_nearest

EXAMPLES = """Look at images, or convert them, before a run reads them.

examples:
  python launch/prepare.py verify --config imagenet_subset
  python launch/prepare.py cache --config imagenet_subset
  python launch/prepare.py parity --data data/imagenet_subset/val --engines torchvision dali
  python launch/prepare.py manifest --data data/cat_dog --train train_data --test test_data --out lists

verify    decode every image, list the bad ones, and let training leave them out
fetch     bring pictures from s3://, gs://, az://, https:// or hf:// to this machine
index     list the pictures of archives once
cache     decode and resize a set once, into rows of pixels that engine cache reads
parity    compare engines on your images, of any source, stage by stage
manifest  list class folders in files of `path label` lines
subset    pick classes and images of a large set into such files
pack      write pictures as WebDataset shards
similar   find near-duplicates between training, validation and test images

Each has its --help."""

KINDS = ("verify", "fetch", "index", "cache", "parity", "manifest", "subset", "pack", "similar")


def main(argv: Sequence[str]) -> int:
    """Run the preparation that the first word names; its exit code.

    Raises:
        UsageError: there is none of this name.
    """
    if argv and argv[0] in HELP:
        print(format_description(EXAMPLES))
        return 0
    if not argv or argv[0] not in KINDS:
        raise _name_kinds(argv)
    module = importlib.import_module(f"alexnet_dist.cli.prepare.{argv[0]}")
    return int(module.main(argv[1:]))


def _name_kinds(argv: Sequence[str]) -> UsageError:
    if not argv or argv[0].startswith("-"):
        return UsageError("no preparation is named", where="command line", remedy=f"give one of {', '.join(KINDS)}")
    near = find_nearest(argv[0], KINDS)
    remedy = f"did you mean {near}?" if near else f"give one of {', '.join(KINDS)}"
    return UsageError(f"unknown preparation {argv[0]!r}", where="command line", remedy=remedy)
