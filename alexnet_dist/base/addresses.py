"""Addresses of pictures that lie on no disk of this machine: which there are, and what one says.

Settings are checked against them, and data/remote/ fetches what they name. An address holds no secret: it stands in
config.yaml and in messages. What a store needs to know of its user comes from the environment alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from alexnet_dist.base.errors import UsageError

STORES = ("s3", "gs", "az")  # with a list of what they hold
WEB, HUB = ("https", "http"), "hf"
_OTHER_WORDS = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az"}
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Address:
    """Where pictures are.

    Args:
        text: as it was given.
        scheme: s3, gs, az, https, http or hf.
        place: bucket, container or host; OWNER/NAME of a data set of the Hugging Face Hub.
        path: of an object, of what several have in common, or a pattern; "" = everything.
        revision: of a data set of the Hub; "" = its newest.
    """

    text: str
    scheme: str
    place: str
    path: str
    revision: str = ""

    @property
    def has_pattern(self) -> bool:
        """Whether the path stands for several names."""
        return "{" in self.path

    @property
    def folder(self) -> str:
        """The part of a pattern, or of an object's path, that its local name lacks."""
        return self.path.partition("{")[0].rpartition("/")[0]


def is_address(text: str | None) -> bool:
    """Whether a text is an address and no path."""
    return text is not None and _ADDRESS.match(text) is not None


def parse_address(text: str, key: str = "data.root") -> Address:
    """What an address says.

    Args:
        text: the address.
        key: the setting or option that has it; for the message.

    Raises:
        UsageError: it is none that can be fetched from, or holds a secret, which the message does not repeat.
    """
    match = _ADDRESS.match(text)
    scheme = match[1].lower() if match else ""
    if scheme not in (*STORES, *WEB, HUB):
        near = _OTHER_WORDS.get(scheme)
        remedy = f"write {near}://" if near else "give s3://, gs://, az://, https:// or hf://, or a folder"
        raise UsageError(f"{key} begins with {scheme}://", why="no such address is known", remedy=remedy)
    rest = text.partition("://")[2]
    parts = urlsplit(f"https://{rest}") if scheme in WEB else None
    has_secret = "@" in parts.netloc or "?" in rest if parts else scheme != HUB and ("@" in rest.partition("/")[0])
    if has_secret:
        why = "an address is written into config.yaml: it may hold no user, no password, no signature and no '?'"
        raise UsageError(f"{key} holds more than an address", why=why, remedy="leave it out; see docs/data-sources.md")
    if scheme == HUB:
        return _parse_hub(text, rest, key)
    place, _, path = (parts.netloc, "", unquote(parts.path)) if parts else rest.partition("/")
    path = path.strip("/")
    if not place or any(name in ("", ".", "..") for name in path.split("/") if path):
        why = f"a {'host' if scheme in WEB else 'bucket'} is needed, and a path without '..' and '//'"
        raise UsageError(f"{key} is no whole address", where=text, why=why, remedy=_describe_form(scheme))
    if scheme in WEB and not path:
        remedy = f"name the file, or several of them: {scheme}://{place}/train-{{000..009}}.tar"
        raise UsageError(f"{key} names no file", where=text, why="a web server lists nothing", remedy=remedy)
    return Address(text, scheme, place, path)


def _parse_hub(text: str, rest: str, key: str) -> Address:
    match = re.fullmatch(r"datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?", rest)
    if match is None:
        remedy = "write hf://datasets/OWNER/NAME, or hf://datasets/OWNER/NAME@REVISION"
        raise UsageError(f"{key} is no data set of the Hub", where=text, why="it has another form", remedy=remedy)
    return Address(text, HUB, match[1], (match[3] or "").strip("/"), match[2] or "")


def _describe_form(scheme: str) -> str:
    return f"write {scheme}://{'HOST/FILE' if scheme in WEB else 'BUCKET/FOLDER'}"
