"""Data sets of the Hugging Face Hub, by its own library: which files there are, and each of them."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from alexnet_dist.base.addresses import Address
from alexnet_dist.base.braces import expand_braces
from alexnet_dist.base.durable import hash_file
from alexnet_dist.base.errors import AlexNetDistError, DataError, MachineError
from alexnet_dist.data.remote.store import RemoteFile
from alexnet_dist.data.remote.transfer import Work

_PASSED_OVER = (".gitattributes",)


def list_dataset(address: Address) -> tuple[str, list[RemoteFile]]:
    """The commit that is meant, and the files that an address names; their paths are those of the repository.

    Raises:
        DataError: no such data set, revision or file.
        MachineError: no network, or no permission.
    """
    disable_progress_bars()  # the files are counted here
    try:
        found = huggingface_hub.HfApi().dataset_info(
            address.place, revision=address.revision or None, files_metadata=True
        )
    except Exception as error:  # the transport's errors are of kinds of its own
        raise explain(error, address) from error
    wanted = expand_braces(address.path) if address.path else []
    files = [
        RemoteFile(item.rfilename, item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else str(item.blob_id))
        for item in found.siblings or []
        if item.rfilename not in _PASSED_OVER and (not wanted or any(_is_below(item.rfilename, w) for w in wanted))
    ]
    if not files:
        why = f"the data set has no file below '{address.path}'" if address.path else "the data set has no file"
        raise DataError("nothing is there", where=address.text, why=why, remedy="look at its files on the Hub")
    return str(found.sha), sorted(files, key=lambda file: file.path)


def _is_below(path: str, wanted: str) -> bool:
    return path == wanted or path.startswith(f"{wanted}/") or fnmatch(path, wanted)


def fetch_from_hub(
    address: Address, commit: str, scratch: Path, file: RemoteFile, part: Path, work: Work
) -> RemoteFile:
    """Bring a file of a data set to a path; see `transfer.FetchFile`. The library itself goes on with its own parts.

    Args:
        address: what the user named.
        commit: of the data set.
        scratch: folder for the library.
        file: which.
        part: where it goes.
        work: what the threads share.

    Raises:
        MachineError: no network, no permission, or other bytes than were announced.
        OSError: the disk does not take it.
    """
    try:
        fetched = Path(
            huggingface_hub.hf_hub_download(
                address.place, file.key, repo_type="dataset", revision=commit, local_dir=scratch
            )
        )
    except Exception as error:  # as above
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
            raise
        raise explain(error, address) from error
    if fetched.stat().st_size != file.size or (len(file.tag) == 64 and hash_file(fetched) != file.tag):
        fetched.unlink()
        why = "it is cut short or altered"
        raise MachineError("a file is not what the Hub says", where=f"{address.text}: {file.key}", why=why)
    os.replace(fetched, part)
    work.report(file.size)
    return file


def explain(error: Exception, address: Address) -> AlexNetDistError:
    """One line for an error of the library."""
    if isinstance(error, AlexNetDistError):
        return error
    if isinstance(error, GatedRepoError):
        why, remedy = "its owner asks for an agreement", "agree on its page, and set HF_TOKEN"
        return MachineError("no permission", where=address.text, why=why, remedy=remedy)
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        is_revision = isinstance(error, RevisionNotFoundError)
        why = f"it has no revision '{address.revision}'" if is_revision else "there is none, or it is private"
        remedy = "check the revision" if is_revision else "check the name, or set HF_TOKEN"
        return DataError("no such data set", where=address.text, why=why, remedy=remedy)
    reply: Any = getattr(error, "response", None)
    why = f"the server says {reply.status_code}" if reply is not None else "the Hub does not answer"
    remedy = "check the network, then run the same command again"
    return MachineError("cannot fetch", where=address.text, why=why, remedy=remedy)
