"""What a store has, and its bytes: the only file that calls obstore.

A forked child hangs in obstore once its parent has used it. Nothing here forks: decoding processes come from a server
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from alexnet_dist.base.addresses import WEB, Address
from alexnet_dist.base.braces import expand_braces
from alexnet_dist.base.errors import AlexNetDistError, DataError, MachineError
from alexnet_dist.base.extras import import_extra

CONNECT_SECONDS, READ_SECONDS = 10, 20  # for a connection to stand, and for the next bytes to come
REQUEST_SECONDS = 86_400  # of one file; what counts is that bytes come
RETRIES, RETRY_SECONDS = 2, 15
CHUNK_BYTES = 1 << 20
THREADS = 16  # small objects wait for the network, not for this machine
MAX_OBJECTS = 5_000_000

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for public ones",
}


class ChangedError(Exception):
    """An object has another content than when it was listed."""


class BrokenError(Exception):
    """A transfer that another attempt may bring to its end; the text is the reason."""


@dataclass(frozen=True)
class RemoteFile:
    """An object, and the file it becomes.

    Args:
        key: what the store calls it.
        path: of the file, below the local folder; POSIX.
        size: bytes.
        tag: says which content it has: the store's etag, or else when it was changed.
        changed: when that was, as the store says; None where it does not.
        has_etag: whether the tag is an etag.
    """

    key: str
    path: str
    size: int
    tag: str
    changed: datetime | None = None
    has_etag: bool = True


# -- what is there ----------------------------------------------------------------------------------------------------


def open_store(address: Address) -> Any:
    """A store that is asked for objects; nothing is asked yet.

    Raises:
        MachineError: obstore is not installed, or the environment lacks what it must know.
    """
    stores = import_extra("obstore.store", "remote")
    limits = {
        "client_options": {
            "allow_http": address.scheme != "https",  # a store's own server may be one, if the environment says so
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        },
        "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
    }
    url = f"{address.scheme}://{address.place}"
    try:
        return stores.HTTPStore.from_url(url, **limits) if address.scheme in WEB else stores.from_url(url, **limits)
    except _failures() as error:
        raise explain(error, address) from error


def list_files(store: Any, address: Address) -> list[RemoteFile]:
    """The objects that an address names, as files, sorted by path.

    Raises:
        DataError: there is none, or one whose name no file can have.
        MachineError: no network, no permission, a bucket elsewhere.
    """
    if address.has_pattern:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda key: _look_up(store, address, key), expand_braces(address.path)))
    elif address.scheme in WEB:
        found = [_look_up(store, address, address.path)]
    else:
        found = _list_below(store, address)
    folders = {parent.as_posix() for file in found for parent in PurePosixPath(file.path).parents}
    files = [file for file in found if not _is_marker(file, folders)]
    if not files:
        raise _find_nothing(address)
    for file in files:
        _check_name(file, address)
    return sorted(files, key=lambda file: file.path)


def _is_marker(file: RemoteFile, folders: set[str]) -> bool:
    """Whether an object is a folder, as consoles make them: nothing is in it, and `photos/` is its name."""
    return file.size == 0 and (file.path in folders or not PurePosixPath(file.path).suffix)


def _list_below(store: Any, address: Address) -> list[RemoteFile]:
    """What lies below a path; the object itself where nothing does."""
    obstore = import_extra("obstore", "remote")
    denied: BaseException | None = None
    metas: list[Any] = []
    try:
        for batch in obstore.list(store, prefix=address.path or None):
            metas += batch
            if len(metas) > MAX_OBJECTS:
                why = f"more than {MAX_OBJECTS:,}"
                raise DataError("too many objects", where=address.text, why=why, remedy="name a folder below it")
    except _failures() as error:
        if not (address.path and _find_status(str(error)) == 403):
            raise explain(error, address) from error
        denied = error  # objects may be read where they may not be listed
    skipped = len(address.path) + 1 if address.path else 0
    files = [_describe(meta, meta["path"][skipped:]) for meta in metas if meta["path"] != address.path]
    if files:
        return files
    try:
        if not address.path:
            raise _find_nothing(address)
        return [_look_up(store, address, address.path)]
    except AlexNetDistError:
        if denied is not None:
            raise explain(denied, address) from denied
        raise


def _find_nothing(address: Address) -> DataError:
    remedy = "check the address; a bucket's name and path are written as they are there"
    return DataError("nothing is there", where=address.text, why="no object has such a name", remedy=remedy)


def _look_up(store: Any, address: Address, key: str) -> RemoteFile:
    """One object.

    Raises:
        DataError: there is none.
        MachineError: it cannot be asked for.
    """
    obstore = import_extra("obstore", "remote")
    skipped = len(address.folder) + 1 if address.folder else 0
    try:
        return _describe(obstore.head(store, key), key[skipped:])
    except FileNotFoundError:
        where = f"{address.scheme}://{address.place}/{key}"
        if where == address.text:
            raise _find_nothing(address) from None
        remedy = "check the pattern"
        raise DataError("an object is missing", where=where, why=f"of {address.text}", remedy=remedy) from None
    except _failures() as error:
        raise explain(error, address) from error


def look_again(store: Any, address: Address, file: RemoteFile) -> RemoteFile:
    """The same object as it is now; raises what `list_files` raises."""
    obstore = import_extra("obstore", "remote")
    try:
        return _describe(obstore.head(store, file.key), file.path)
    except FileNotFoundError:
        where = f"{address.scheme}://{address.place}/{file.key}"
        why = "it was there a moment ago"
        raise DataError("an object is gone", where=where, why=why, remedy="run the same command again") from None
    except _failures() as error:
        raise explain(error, address) from error


def _describe(meta: Any, path: str) -> RemoteFile:
    changed, tag = meta["last_modified"], (meta["e_tag"] or "").strip('"')  # Azure's lists have them without quotes
    return RemoteFile(
        meta["path"], path, meta["size"], tag or f"changed {changed.isoformat()}", changed, has_etag=bool(tag)
    )


def _check_name(file: RemoteFile, address: Address) -> None:
    parts = file.path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in file.path or "\\" in file.path:
        where, why = f"{address.scheme}://{address.place}/{file.key}", "no file may have its name"
        raise DataError("an object has a name that leads elsewhere", where=where, why=why, remedy="name another folder")


# -- its bytes --------------------------------------------------------------------------------------------------------


def read_chunks(store: Any, file: RemoteFile, offset: int) -> Iterator[memoryview]:
    """The bytes of an object from `offset` on.

    Raises:
        ChangedError: it has another content by now.
        BrokenError: no connection, or one that broke; `offset` 0 is the only one where the server knows no others.
        BaseException: of obstore; `explain` says it.
    """
    obstore = import_extra("obstore", "remote")
    options: dict[str, Any] = {"range": {"offset": offset}} if offset else {}
    if not file.has_etag:
        options["if_unmodified_since"] = file.changed
    elif not file.tag.startswith("W/"):  # a weak one never matches
        options["if_match"] = f'"{file.tag}"'
    try:
        reply = obstore.get(store, file.key, options=options)
        found = _describe(reply.meta, file.path)
        if (found.size, found.tag) != (file.size, file.tag):
            raise ChangedError
        for chunk in reply.stream(min_chunk_size=CHUNK_BYTES):
            yield memoryview(chunk)
    except _failures() as error:
        name = type(error).__name__
        if name == "PreconditionError" or isinstance(error, FileNotFoundError):
            raise ChangedError from error
        if _is_passing(error):
            raise BrokenError(_find_reason(str(error))) from error
        raise


def knows_no_offset(error: BaseException) -> bool:
    """Whether a server gives a whole object only."""
    return type(error).__name__ == "NotSupportedError" or "NotPartial" in str(error)


def _is_passing(error: BaseException) -> bool:
    """Whether another attempt may do better: no answer, a broken answer, or a server's own fault."""
    status = _find_status(str(error))
    is_general = type(error).__name__ == "GenericError" and (status is None or status >= 500)
    return is_general and not _is_elsewhere(error) and not knows_no_offset(error)


# -- what went wrong --------------------------------------------------------------------------------------------------


def _failures() -> tuple[type[BaseException], ...]:
    return (import_extra("obstore.exceptions", "remote").BaseError, FileNotFoundError)


def explain(error: BaseException, address: Address) -> AlexNetDistError:
    """One line for an error of obstore, whose own text may hold addresses with signatures, and a user's key."""
    text, status = str(error), _find_status(str(error))
    credentials = _CREDENTIALS.get(address.scheme, "see that the address can be opened without a password")
    if _is_elsewhere(error) and address.scheme == "s3":
        region = re.search(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'", text)
        which = f"={region[1] or region[2]}" if region else " to the bucket's region"
        why = "the bucket lies in another region than the environment says"
        return MachineError("wrong region", where=address.text, why=why, remedy=f"set AWS_REGION{which}")
    if "TokenRequest" in text or "169.254.169.254" in text:
        why = "the environment has no credentials, and this machine has none of its own"
        return MachineError("cannot sign in", where=address.text, why=why, remedy=credentials)
    if "MissingAccount" in text:
        why, remedy = "the environment does not name the account", "set AZURE_STORAGE_ACCOUNT_NAME"
        return MachineError("cannot sign in", where=address.text, why=why, remedy=remedy)
    if status in (401, 403):
        why = f"the server says {_find_reason(text)}"
        return MachineError("no permission", where=address.text, why=why, remedy=credentials)
    if status == 404 or isinstance(error, FileNotFoundError):
        why = f"the server says {_find_reason(text)}" if status else "no such object"
        return DataError("nothing is there", where=address.text, why=why, remedy="check the bucket's name and the path")
    remedy = "check the network and the address, then run the same command again: it goes on where it stopped"
    return MachineError("cannot fetch", where=address.text, why=_find_reason(text), remedy=remedy)


def _is_elsewhere(error: BaseException) -> bool:
    signs = ("BareRedirect", "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint")
    return any(sign in str(error) for sign in signs)


def _find_status(text: str) -> int | None:
    match = re.search(r"status code: (\d{3})", text)
    return int(match[1]) if match else None


def _find_reason(text: str) -> str:
    """Why, in words of ours: a status and its code, or what the connection did."""
    if match := re.search(r"status code: (\d{3} [A-Za-z ]+)", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return match[1].strip() + (f" ({code[1]})" if code else "")
    signs: dict[str, str] = {
        "InvalidCertificate": "its certificate is not trusted (SSL_CERT_FILE)",
        "dns error": "no such host",
        "kind: Connect": "it cannot be connected to",
        "TimedOut": f"no bytes came for {READ_SECONDS} s",
        "kind: Timeout": f"no bytes came for {READ_SECONDS} s",
        "builder error": "the address is no address",
    }
    return next((why for sign, why in signs.items() if sign in text), "the connection broke")
