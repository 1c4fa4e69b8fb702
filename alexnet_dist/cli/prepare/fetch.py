"""`prepare fetch`: brings what an address names into the cache folder, where training finds it."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import escape_text, join_names
from alexnet_dist.cli.options import add_options
from alexnet_dist.cli.prepare.data_settings import DataSettings, read_config
from alexnet_dist.settings.reader import new_parser, parse_arguments

EXAMPLES = """Fetch pictures from object storage, a web server or the Hugging Face Hub, once for each machine.

examples:
  python launch/prepare.py fetch s3://bucket/flowers
  python launch/prepare.py fetch "https://host/shards/train-{000..009}.tar" --data.cache_dir /scratch/cache
  python launch/prepare.py fetch hf://datasets/OWNER/NAME@main --check
  python launch/train.py --config imagenet_subset --data.root s3://bucket/flowers --output_dir runs/flowers

An address is a folder (s3://, gs://, az://), one object, or a pattern with {000..009} or {train,val}. All of it is
fetched before anything is used. A fetch that was stopped goes on where it was. What has changed at the address since
is fetched again, and what is gone there is removed here. Training with such a data.root fetches by itself what is
missing, and does not ask what has changed. --check reads every file and holds it against its sha256. Credentials come
from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL;
GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; HF_TOKEN. For a public bucket
set AWS_SKIP_SIGNATURE, GOOGLE_SKIP_SIGNATURE or AZURE_SKIP_SIGNATURE to true."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare fetch", EXAMPLES, "[ADDRESS] [--config NAME] [options] [--SETTING VALUE ...]")
    what = "what to fetch (default: the data.root of the settings)"
    parser.add_argument("addresses", metavar="ADDRESS", type=str, nargs="*", help=what)
    add_options(parser, "config")
    parser.add_argument("--check", action="store_true", help="fetch nothing; read what is there and check it")
    add_options(parser, "quiet", "debug")
    arguments = parse_arguments(argv, parser, DataSettings)
    options, given = arguments.options, arguments.given
    address = _find_address(options.addresses, given.get("data.root"))
    own = {"data.root": address} if address is not None else {}
    stand_ins = {} if options.config else {"data.source": "folder"}
    values = {**stand_ins, **given, **own}
    data = read_config(options.config, values).data
    if data.root is None or not is_address(data.root):
        remedy = "give s3://BUCKET/FOLDER or the like, or set --data.root to it"
        why = "" if data.root is None else f"data.root is the folder {data.root}"
        raise UsageError("no address is named", where="command line", why=why, remedy=remedy)
    return check(data.root, data.cache_dir) if options.check else fetch(data.root, data.cache_dir)


def _find_address(words: Sequence[str], root: str | None) -> str | None:
    if len(words) + (root is not None) > 1:
        why = join_names([*words, *([root] if root is not None else [])])
        raise UsageError("more than one address", where="command line", why=why, remedy="give one")
    return words[0] if words else root


def fetch(address: str, cache_dir: str | None) -> int:
    """Fetch what is missing and what has changed, and print the folder; 0.

    Raises:
        UsageError: an address that cannot be meant.
        DataError: nothing is there.
        MachineError: no network, no permission, no space.
    """
    from alexnet_dist.base.places import find_cache_dir
    from alexnet_dist.data.remote.keep import fetch_copy
    from alexnet_dist.runs.folder import start_logging

    start_logging(None)
    folder = fetch_copy(address, find_cache_dir(cache_dir), shown=True, again=True)
    print(escape_text(folder))
    return 0


def check(address: str, cache_dir: str | None) -> int:
    """Hold every file against its sha256, and print how many there are; 0.

    Raises:
        DataError: nothing was fetched, or files are damaged; those are fetched again by the next `prepare fetch`.
    """
    from alexnet_dist.base.places import find_cache_dir
    from alexnet_dist.data.remote.keep import find_copy, find_damaged, forget, held, is_whole, read_rows

    copy = find_copy(address, find_cache_dir(cache_dir))
    remedy = "run prepare fetch without --check"
    if not copy.record.exists():
        raise DataError("nothing was fetched", where=address, why=f"{copy.folder} is not there", remedy=remedy)
    with held(copy, shown=True):
        damaged = find_damaged(copy, shown=True)
        if damaged:
            forget(copy, damaged)
            what = "a file is damaged" if len(damaged) == 1 else f"{len(damaged):,} files are damaged"
            where, why = str(copy.files / damaged[0]), "it is gone, or its sha256 is another"
            raise DataError(what, where=where, why=why, remedy=f"{remedy}: it fetches them again")
        if not is_whole(copy):
            raise DataError("not everything is there", where=address, why="a fetch was stopped", remedy=remedy)
        print(f"{len(read_rows(copy)):,} files are as they were fetched: {escape_text(copy.files)}")
    return 0
