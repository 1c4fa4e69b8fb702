"""Tensors out of files of other programs: .safetensors, .npz, and torch's pickles, of which no code is ever run.

What such files are wrapped in is taken off here: the state of a whole training, with its optimizer and its settings.
Whose names the tensors bear is weights_names.py's business.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.durable import MAX_JSON_BYTES, parse_json
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.models.weights_names import name_some

MAX_NESTED = 8  # dicts in dicts
MAX_UNPACKED = 20  # times its size that a file may unpack to; weights do not even halve
# Where training programs keep the weights; of several, the first. Averaged ones are what their own evaluation takes.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "network", "net", "module", "weights", "params")

# What training programs keep beside the weights, settings and counters, is passed over: nothing is made of it.
_PASSED_OVER = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\..+|numpy\..+|_codecs\.encode|datetime\..+|typing\.Any"
    r"|((pytorch_)?lightning|lightning_fabric|omegaconf)\..+|torch\.torch_version\.TorchVersion"
    r"|(builtins|__builtin__)\.(dict|list|tuple|set|int|float|str|bool|bytes|object)"
)
_MAPPINGS = re.compile(r"collections\.defaultdict|.+\.(AttributeDict|EasyDict|CfgNode)")
# With what torch's unpickler answers bytes that mean nothing to it.
_BAD_BYTES = (LookupError, EOFError, AttributeError, AssertionError, UnicodeError, struct.error)
_MAGIC = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file (`git lfs pull` fetches that)",
    b"<!DOCTYPE": "it is a web page",
    b"<!doctype": "it is a web page",
    b"<html": "it is a web page",
    b"\x89HDF": "it is an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "it is a gzip archive",
    b"\x93NUMPY": "it is a single array",
}


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """What a file holds.

    Args:
        tensors: by the names that they have there.
        notes: a line on what they were wrapped in.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def read_weights_file(path: Path) -> WeightsFile:
    """The tensors of a .safetensors, .npz or .pt file, without what they are wrapped in.

    Raises:
        CheckpointError: it cannot be read, holds no network's weights, unpacks to many times its size, or is a pickle
            that would run code; there is no way around that.
    """
    try:
        _check_content(path)
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return WeightsFile(read_tensors(path))
        return WeightsFile(_read_arrays(path)) if path.suffix == ".npz" else _unwrap(_read_pickle(path))
    except MemoryError:
        raise
    except Exception as error:  # torch's unpickler raises whatever the bytes lead it to: KeyError, struct.error, ...
        raise CheckpointError("cannot read weights", where=str(path), why=_explain(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is damaged.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # safetensors opens no such path
        return load(path.read_bytes())
    return load_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a .safetensors file, by name, from its header alone.

    Raises:
        CheckpointError: it has none.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, MAX_JSON_BYTES)))
        return {name: tuple(value["shape"]) for name, value in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError("cannot read weights", where=str(path), why=_explain(error)) from error


class _UnusableFileError(Exception):
    """The reason why a file is of no use."""


def _check_content(path: Path) -> None:
    """Refuse what is no weights file by its first bytes, and one that unpacks to many times its size."""
    with path.open("rb") as file:
        start = file.read(24)
    if not start:
        raise _UnusableFileError("it is empty")
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            raise _UnusableFileError(kind)
    if zipfile.is_zipfile(path):
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > MAX_UNPACKED * size:
            raise _UnusableFileError(f"its {size / 1e6:.1f} MB unpack to {unpacked / 1e6:.1f} MB, which no weights do")
    elif start.startswith(b"PK"):  # its list of records stands at the end
        raise _UnusableFileError("it is cut or damaged")


def _is_safetensors(path: Path) -> bool:
    """Whether a file under another name begins as that format does: the length of a JSON object, then the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_arrays(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            _check_array(archive, record)
    with np.load(path, allow_pickle=False) as arrays:
        native = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}
    return {name: torch.from_numpy(array) for name, array in native.items()}


def _check_array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Refuse an array that says it is larger than it is: NumPy would first ask for all of that memory."""
    with archive.open(record) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > record.file_size:
        raise _UnusableFileError("it is cut or damaged")


class _PassedOver:
    """In the place of another library's object: made and filled like that, it keeps and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _PassedOverMapping:
    """In the place of another library's dict."""

    def __new__(cls, *args: Any) -> Any:
        return {}


def _read_pickle(path: Path) -> Any:
    """What torch's own unpickler makes of a file, which knows tensors and plain values alone and runs nothing."""
    stand_ins: list[Any] = [(_PassedOver, "argparse.Namespace")]
    if zipfile.is_zipfile(path):
        for name in get_unsafe_globals_in_checkpoint(str(path)):
            if _MAPPINGS.fullmatch(name):
                stand_ins.append((_PassedOverMapping, name))
            elif _PASSED_OVER.fullmatch(name):
                stand_ins.append((_PassedOver, name))
    with safe_globals(stand_ins), path.open("rb") as file:  # torch opens no path that is not UTF-8
        return torch.load(file, map_location="cpu", weights_only=True)


def _explain(error: Exception) -> str:
    """The reason in one sentence: torch's own runs over several lines and names ways around its guard."""
    text = str(error)
    unknown = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, _UnusableFileError):
        return text
    if isinstance(error, OSError):
        return name_reason(error)
    if unknown:
        return f"it holds {unknown[1]}, and opening that would run code; save model.state_dict() alone"
    if "torchscript" in text.lower():
        return "it is a TorchScript archive; save its state_dict() alone"
    if "PytorchStreamReader" in text or isinstance(error, zipfile.BadZipFile):
        return "it is cut or damaged"
    if isinstance(error, _BAD_BYTES) or "weights_only" in text:
        return "it is no file of torch.save, or a damaged one"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__


def _unwrap(values: Any) -> WeightsFile:
    """Go down to the dict that holds the network's tensors."""
    trail: list[str] = []
    passed: list[str] = []
    while isinstance(values, dict) and len(trail) < MAX_NESTED:
        key, others = _choose_inner(values)
        if key is None:
            tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
            if not tensors:
                break
            instead = f", not from {' or '.join(passed)}" if passed else ""
            return WeightsFile(tensors, [f"read from {'.'.join(trail)} in the file{instead}"] if trail else [])
        trail.append(key)
        passed += others if key in AVERAGED else []
        values = values[key]
    found = (
        f"it holds {name_some(values) or 'nothing'}"
        if isinstance(values, dict)
        else f"it holds a {type(values).__name__}"
    )
    raise _UnusableFileError(f"it is no state dict: {found}")


def _choose_inner(values: dict[Any, Any]) -> tuple[str | None, list[str]]:
    """The key under which the weights lie, where they do not lie here, and the keys of others that could be meant."""
    inner = {key: value for key, value in values.items() if isinstance(value, dict) and _has_tensors(value)}
    known = [key for key in WRAPPERS if key in inner]
    if known:
        return known[0], known[1:]
    if any(isinstance(value, Tensor) and "." in str(name) for name, value in values.items()):
        return None, []
    # Under a name of the user's own: what has names of parameters, as an optimizer's state has not.
    named = [key for key, value in inner.items() if isinstance(key, str) and any("." in str(name) for name in value)]
    return (named[0], []) if len(named) == 1 else (None, [])


def _has_tensors(values: dict[Any, Any]) -> bool:
    """Whether a dict, or one in it, holds a tensor; each is looked at once, however often it is named."""
    waiting, seen = [values], {id(values)}
    while waiting:
        for value in waiting.pop().values():
            if isinstance(value, Tensor):
                return True
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
    return False
