"""CIFAR-10 and Fashion-MNIST: torchvision's files, checked, unpacked once, fetched where they are missing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import socket
import struct
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.array_files import (
    SIDE,
    Part,
    encode_idx,
    list_files,
    make_part,
    trust_fashion_mnist,
    write_cifar10,
    write_fashion_mnist,
)
from helpers.refusals import refused
from torchvision.datasets import CIFAR10, FashionMNIST

from alexnet_dist.assembly.sets import Splits, build_splits, find_root
from alexnet_dist.base import download
from alexnet_dist.base.durable import TEMPORARY, mark_name
from alexnet_dist.base.errors import CheckpointError, MachineError, UsageError
from alexnet_dist.data.decode import UnreadableImageError, convert_to_luma
from alexnet_dist.data.files import kept_arrays
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources import arrays as array_sets
from alexnet_dist.data.sources.arrays import array_index
from alexnet_dist.runs.evaluation import find_split
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
FASHION_RAW = Path("FashionMNIST") / "raw"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Where torchvision keeps the packed files."""
    return tmp_path / "data" / FASHION_RAW


@pytest.fixture
def fashion(raw: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """40 and 20 pictures in the packed files."""
    return write_fashion_mnist(raw, monkeypatch)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """100 and 20 pictures, as batch files and as an archive."""
    return write_cifar10(tmp_path / "data", monkeypatch)


def index(tmp_path: Path, source: Any = "fashion_mnist", part: str = "train", **settings: Any) -> SampleIndex:
    defaults: dict[str, Any] = {"root": tmp_path / "data", "cache_dir": tmp_path / "cache", "download": False}
    return array_index(source, part, **(defaults | settings))


def assert_holds(found: SampleIndex, part: Part, channels: int) -> None:
    """Every picture and label of the files, each once."""
    numbers = np.array([int(path.rpartition("/")[2]) for path in found.paths])
    assert sorted(numbers.tolist()) == list(range(len(part.labels)))
    assert found.labels.tolist() == part.labels[numbers].tolist()
    images = part.images.reshape(*part.images.shape[:3], channels)
    loaded = np.stack([found.load_pixels(number, channels) for number in range(len(found))])
    assert np.array_equal(loaded, images[numbers])


@pytest.mark.parametrize("place", ["torchvision's root", "the folder of the files"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_fashion_mnist(tmp_path: Path, raw: Path, fashion: dict[str, Part], part: str, place: str) -> None:
    found = index(tmp_path, part=part, root=raw if place == "the folder of the files" else tmp_path / "data")
    assert found.classes == tuple(FashionMNIST.classes)
    assert found.paths[0].startswith(f"{part}/")
    assert (found.sizes == SIDE).all()
    assert found.sizes.shape == (len(found), 2)
    assert (found.byte_sizes == 0).all()
    assert found.labels.dtype == np.int64
    assert sorted(found.labels.tolist()) == found.labels.tolist()
    assert_holds(found, fashion[part], 1)


@pytest.mark.parametrize("form", ["folder", "the folder itself", "archive"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_cifar10(tmp_path: Path, cifar: dict[str, Part], part: str, form: str) -> None:
    root = tmp_path / "data"
    if form == "archive":
        shutil.rmtree(root / CIFAR10.base_folder)
    found = index(tmp_path, "cifar10", part, root=root / CIFAR10.base_folder if form == "the folder itself" else root)
    assert found.classes == tuple(f"thing {number}" for number in range(9, -1, -1))  # by label, not sorted
    assert (found.sizes == 32).all()
    assert_holds(found, cifar[part], 3)
    assert not list((tmp_path / "cache").rglob("*unpacked*"))


def test_packed_and_unpacked_files_are_the_same_data(tmp_path: Path, raw: Path, fashion: dict[str, Part]) -> None:
    packed = index(tmp_path).fingerprint()
    for path in raw.iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    unpacked = index(tmp_path)
    assert unpacked.fingerprint() == packed
    assert_holds(unpacked, fashion["train"], 1)


def test_fingerprint_follows_the_contents_not_the_place(
    tmp_path: Path, raw: Path, fashion: dict[str, Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert index(tmp_path, root=tmp_path / "moved", cache_dir=tmp_path / "c").fingerprint() == first.fingerprint()
    images = fashion["train"].images.copy()
    images[7, 0, 0] ^= 1
    (raw / IMAGES).write_bytes(gzip.compress(encode_idx(images)))
    trust_fashion_mnist(raw, monkeypatch)
    assert index(tmp_path).fingerprint() != first.fingerprint()
    assert index(tmp_path, part="test").fingerprint() != first.fingerprint()


def test_archive_and_folder_are_the_same_data(tmp_path: Path, cifar: dict[str, Part]) -> None:
    first = index(tmp_path, "cifar10").fingerprint()
    shutil.rmtree(tmp_path / "data" / CIFAR10.base_folder)
    assert index(tmp_path, "cifar10", cache_dir=tmp_path / "other").fingerprint() == first


@pytest.mark.usefixtures("fashion", "cifar")
def test_pixels_are_converted_like_those_of_files(tmp_path: Path) -> None:
    gray, color = index(tmp_path), index(tmp_path, "cifar10")
    assert np.array_equal(gray.load_pixels(3), np.repeat(gray.load_pixels(3, channels=1), 3, axis=2))
    assert np.array_equal(color.load_pixels(3, channels=1), convert_to_luma(color.load_pixels(3)))
    assert gray.load_pixels(3).flags.writeable
    assert gray.load_pixels(3, channels=1).flags.writeable


@pytest.mark.usefixtures("fashion")
def test_index_travels_small_and_opens_its_file_once_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = index(tmp_path)
    letter = pickle.dumps(found)
    assert len(letter) < 4000  # the pictures take 31,360 bytes
    arrived = pickle.loads(letter)
    assert arrived.fingerprint() == found.fingerprint()
    array_sets._map_array.cache_clear()
    opened: list[Path] = []
    load = np.load
    monkeypatch.setattr(array_sets.np, "load", lambda file, **words: opened.append(file) or load(file, **words))
    assert np.array_equal(arrived.load_pixels(5), found.load_pixels(5))
    assert len(opened) == 1


@pytest.mark.usefixtures("fashion")
def test_prepared_pictures_that_are_gone_are_no_traceback(tmp_path: Path) -> None:
    found = index(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    array_sets._map_array.cache_clear()
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        found.load_pixels(0)


@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
def test_second_start_unpacks_nothing(
    tmp_path: Path, fashion: object, cifar: object, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index(tmp_path, source)
    before = list_files(tmp_path / "cache")
    for name in ("_read_fashion_mnist", "_read_batches"):
        monkeypatch.setattr(array_sets, name, lambda *paths: pytest.fail("unpacked again"))
    assert index(tmp_path, source).fingerprint() == first.fingerprint()
    assert list_files(tmp_path / "cache") == before


@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
def test_nothing_is_written_below_the_root(tmp_path: Path, fashion: object, cifar: object, source: str) -> None:
    for path in (tmp_path / "data").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = list_files(tmp_path / "data")
    for part in ("train", "test"):
        index(tmp_path, source, part, download=True)
    assert list_files(tmp_path / "data") == before
    for path in (tmp_path / "data").rglob("*"):
        path.chmod(0o755)


# -- the cache --------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_the_seal(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _forget(path: Path) -> None:
    path.unlink()


def _make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _turn(path: Path) -> None:
    array = np.asfortranarray(np.load(path))
    np.save(path, array)


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("damage", [_cut, _cut_the_seal, _flip_a_bit, _empty, _forget, _make_a_pipe, _turn])
@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    first = index(tmp_path)
    (path,) = (tmp_path / "cache").rglob(f"*-{name}.npy")
    good = path.read_bytes()
    damage(path)
    assert index(tmp_path).fingerprint() == first.fingerprint()
    assert path.read_bytes() == good


@pytest.mark.usefixtures("fashion")
def test_prepared_arrays_are_plain_npy_files(tmp_path: Path, fashion: dict[str, Part]) -> None:
    index(tmp_path)
    (path,) = (tmp_path / "cache").rglob("*-images.npy")
    assert np.array_equal(np.load(path)[:, :, :, 0], fashion["train"].images)


@pytest.mark.heavy
@pytest.mark.usefixtures("fashion")
def test_processes_that_start_at_once_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = array_sets._read_fashion_mnist

    def read_slowly(*paths: Path) -> Any:
        (tmp_path / f"read by {os.getpid()}").touch()
        time.sleep(0.3)
        return read(*paths)

    monkeypatch.setattr(array_sets, "_read_fashion_mnist", read_slowly)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=index, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("read by *"))) == 1


@pytest.mark.usefixtures("fashion")
def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    line = refused(lambda: index(tmp_path, cache_dir=tmp_path / "occupied"), MachineError)
    assert "set --data.cache_dir" in line


@pytest.mark.usefixtures("fashion")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept_arrays.os, "fsync", fill_disk)
        line = refused(lambda: index(tmp_path), MachineError)
    assert "No space left on device; free some space, or set --data.cache_dir" in line
    assert [path.name for path in (tmp_path / "cache" / "arrays").iterdir()] == [".lock"]
    assert len(index(tmp_path)) == 40


# -- files that are damaged or missing --------------------------------------------------------------------------------


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, _empty])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("after_a_start", [False, True])
def test_packed_file_with_another_md5(
    tmp_path: Path, raw: Path, damage: Callable[[Path], None], name: str, after_a_start: bool
) -> None:
    if after_a_start:
        index(tmp_path)
    damage(raw / name)
    line = refused(lambda: index(tmp_path))
    assert line.startswith(f"damaged file ({raw / name}): its md5 is ")


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_file(tmp_path: Path, raw: Path, name: str) -> None:
    (raw / name).unlink()
    line = refused(lambda: index(tmp_path))
    assert str(raw / name) in line
    assert "--data.download true" in line
    assert len(index(tmp_path, part="test")) == 20  # which does not need it


def test_missing_root(tmp_path: Path) -> None:
    for source, name in (("fashion_mnist", IMAGES), ("cifar10", CIFAR10.filename)):
        line = refused(partial(index, tmp_path, source))
        assert str(tmp_path / "data") in line
        assert name in line


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize("damage", [_cut, _flip_a_bit])
def test_damaged_batch_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "data" / CIFAR10.base_folder / name
    damage(path)
    assert refused(lambda: index(tmp_path, "cifar10")).startswith(f"damaged file ({path}): its md5 is ")


@pytest.mark.usefixtures("cifar")
def test_missing_batch_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data" / CIFAR10.base_folder / "data_batch_2"
    path.unlink()
    assert str(path) in refused(lambda: index(tmp_path, "cifar10"))


@pytest.mark.usefixtures("cifar")
def test_damaged_archive_is_named(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data" / CIFAR10.base_folder)
    _cut(tmp_path / "data" / CIFAR10.filename)
    assert CIFAR10.filename in refused(lambda: index(tmp_path, "cifar10"))


@pytest.mark.usefixtures("cifar")
def test_no_pickle_is_opened_unchecked(tmp_path: Path) -> None:
    """A batch file that would run code has another md5, whether or not the arrays were unpacked before."""

    class Payload:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "canary"), "w"))

    (tmp_path / "data" / CIFAR10.base_folder / "test_batch").write_bytes(pickle.dumps(Payload()))
    assert "test_batch" in refused(lambda: index(tmp_path, "cifar10"))  # of the part that is not read, too
    assert "test_batch" in refused(lambda: index(tmp_path, "cifar10", "test"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("cifar")
def test_a_pickle_that_is_exchanged_after_the_check_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked again is a copy: the error names the file."""
    path, keep = tmp_path / "data" / CIFAR10.base_folder / "data_batch_3", array_sets.keep_arrays

    def exchange(*words: Any) -> Any:
        _flip_a_bit(path)
        return keep(*words)

    monkeypatch.setattr(array_sets, "keep_arrays", exchange)
    assert refused(lambda: index(tmp_path, "cifar10")).startswith(f"damaged file ({path}): its md5 is ")


GOOD = make_part(20, (SIDE, SIDE), 0)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (encode_idx(GOOD.images)[:-1], encode_idx(GOOD.labels), [IMAGES[:-3], "15679 values", "20 x 28 x 28"]),
        (encode_idx(GOOD.images), encode_idx(GOOD.labels)[:6], [LABELS[:-3]]),
        (b"", encode_idx(GOOD.labels), [IMAGES[:-3]]),
        (encode_idx(GOOD.labels), encode_idx(GOOD.labels), [IMAGES[:-3], "it begins with 0x00000801"]),
        (encode_idx(GOOD.images), encode_idx(GOOD.labels[:19]), [LABELS[:-3], "19 labels for 20 images"]),
        (encode_idx(GOOD.images), encode_idx(GOOD.labels + np.uint8(1)), [LABELS[:-3], "label 10 of 10 classes"]),
        (struct.pack(">4I", 0x0803, 0, 28, 28), struct.pack(">2I", 0x0801, 0), [IMAGES[:-3], "0 x 28 x 28"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_file_that_is_no_idx_file(
    tmp_path: Path,
    raw: Path,
    fashion: object,
    monkeypatch: pytest.MonkeyPatch,
    images: bytes,
    labels: bytes,
    words: list[str],
    packed: bool,
) -> None:
    for name, data in ((IMAGES, images), (LABELS, labels)):
        (raw / name).write_bytes(gzip.compress(data))
        if not packed:
            (raw / name).unlink()
            (raw / name[:-3]).write_bytes(data)
    if packed:
        trust_fashion_mnist(raw, monkeypatch)
    line = refused(lambda: index(tmp_path))
    assert "damaged file" in line
    assert [word for word in words if word not in line] == []


@pytest.mark.usefixtures("fashion")
def test_packed_file_that_ends_too_early(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its md5 would be the expected one."""
    _cut(raw / IMAGES)
    trust_fashion_mnist(raw, monkeypatch)
    assert f"damaged file ({raw / IMAGES})" in refused(lambda: index(tmp_path))


# -- download ---------------------------------------------------------------------------------------------------------


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder in silence; of a file named `.cut` beside it only that many bytes arrive."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        limit = Path(str(self.directory)) / ".cut"
        data = source.read()
        outputfile.write(data[: int(limit.read_text())] if limit.exists() else data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server on this machine that serves tmp_path/served."""
    (tmp_path / "served").mkdir()
    handler = partial(_Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def served(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both sets can be fetched from here, and nothing lies below data.root."""
    write_fashion_mnist(tmp_path / "served", monkeypatch)
    write_cifar10(tmp_path / "served", monkeypatch)
    monkeypatch.setattr(array_sets, "FASHION_HTTPS", server)
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    monkeypatch.setattr(CIFAR10, "url", server + CIFAR10.filename)
    return tmp_path / "served"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
@pytest.mark.parametrize("root", [None, "data"])
def test_download_of_what_is_missing(
    tmp_path: Path, source: str, root: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / root if root is not None else None
    found = index(tmp_path, source, root=place, download=True)
    assert found.fingerprint() == index(tmp_path, source, root=tmp_path / "served").fingerprint()
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(urllib.request, "build_opener", lambda: pytest.fail("fetched again"))
    for module in (download, kept_arrays):
        monkeypatch.setattr(module, "FileLock", lambda path: pytest.fail("a complete cache may be read-only"))
    assert index(tmp_path, source, root=place, download=True).fingerprint() == found.fingerprint()


def test_only_what_is_missing_is_fetched(tmp_path: Path, raw: Path, served: Path) -> None:
    raw.mkdir(parents=True)
    shutil.copy(served / IMAGES, raw)
    index(tmp_path, download=True)
    assert [path.name for path in (tmp_path / "cache" / "downloads").rglob("*.gz")] == [LABELS]


@pytest.mark.usefixtures("served")
def test_an_incomplete_folder_is_completed_from_the_archive(tmp_path: Path, served: Path) -> None:
    shutil.copytree(served / CIFAR10.base_folder, tmp_path / "data" / CIFAR10.base_folder)
    (tmp_path / "data" / CIFAR10.base_folder / "data_batch_1").unlink()
    assert len(index(tmp_path, "cifar10", download=True)) == 100


@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
def test_transfer_that_is_cut_short(tmp_path: Path, served: Path, source: str) -> None:
    (served / ".cut").write_text("100")
    line = refused(lambda: index(tmp_path, source, download=True), MachineError)
    assert line.startswith("cannot fetch")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    (served / ".cut").unlink()
    assert len(index(tmp_path, source, download=True)) in (40, 100)


@pytest.mark.usefixtures("served")
def test_damaged_download_is_fetched_again_and_kept(tmp_path: Path) -> None:
    first = index(tmp_path, download=True).fingerprint()
    path = tmp_path / "cache" / "downloads" / FASHION_RAW / IMAGES
    path.write_bytes(b"mine")
    assert index(tmp_path, download=True).fingerprint() == first
    assert path.with_name(f"{IMAGES}.1").read_bytes() == b"mine"


def test_a_file_of_that_name_stays_where_nothing_better_comes(tmp_path: Path, served: Path) -> None:
    (served / ".cut").write_text("100")
    path = tmp_path / "cache" / "downloads" / FASHION_RAW / IMAGES
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    refused(lambda: index(tmp_path, download=True), MachineError)
    assert path.read_bytes() == b"mine"


@pytest.mark.usefixtures("served")
def test_what_a_killed_download_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "downloads" / FASHION_RAW
    folder.mkdir(parents=True)
    left = mark_name(folder / IMAGES, TEMPORARY)
    left.write_bytes(b"half")
    index(tmp_path, download=True)
    assert not left.exists()


def test_a_folder_for_unpacking_is_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data", monkeypatch)
    shutil.rmtree(tmp_path / "data" / CIFAR10.base_folder)
    for name in (".unpacked", "unpacked"):
        (tmp_path / "cache" / "arrays" / name).mkdir(parents=True)
        (tmp_path / "cache" / "arrays" / name / "mine").touch()
    index(tmp_path, "cifar10")
    assert len(list((tmp_path / "cache" / "arrays").rglob("mine"))) == 2


@pytest.mark.usefixtures("served")
def test_another_mirror_is_tried(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_sets, "FASHION_HTTPS", server + "nothing/")
    monkeypatch.setattr(FashionMNIST, "mirrors", [server])
    assert len(index(tmp_path, download=True)) == 40


@pytest.mark.usefixtures("served")
def test_file_that_the_server_lacks(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_sets, "FASHION_HTTPS", server + "nothing/")
    line = refused(lambda: index(tmp_path, download=True), MachineError)
    assert "404" in line
    assert "put it at ROOT/FashionMNIST/raw" in line


@pytest.mark.usefixtures("fashion")
def test_no_network(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def know_no_name(*words: object, **more: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", know_no_name)
    (raw / IMAGES).unlink()
    line = refused(lambda: index(tmp_path, download=True), MachineError)
    assert "Temporary failure in name resolution" in line
    assert "put it at ROOT/FashionMNIST/raw" in line


@pytest.mark.usefixtures("fashion")
def test_a_server_that_never_answers_is_given_up(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download.ANSWER_SECONDS < 15
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    (raw / IMAGES).unlink()
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts and says nothing
        monkeypatch.setattr(array_sets, "FASHION_HTTPS", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        monkeypatch.setattr(FashionMNIST, "mirrors", [])
        begin = time.monotonic()
        line = refused(lambda: index(tmp_path, download=True), MachineError)
    assert time.monotonic() - begin < 10
    assert "cannot fetch" in line


class _Hostile(http.server.BaseHTTPRequestHandler):
    """Sends `chunk` for ever, every `pause` seconds, where `chunked` in HTTP's own chunks; or an error page."""

    chunk, pause, head = b"x" * 65536, 0.0, b"HTTP/1.1 200 OK\r\n\r\n"

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(self.head)
            while self.chunk:
                self.wfile.write(self.chunk)
                time.sleep(self.pause)

    def log_message(self, format: str, *args: Any) -> None:
        pass


DRIP = {"chunk": b"x", "pause": 0.02}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "endless": ({}, "more than the"),
    "endless, in chunks": (
        {"head": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunk": b"4\r\nabcd\r\n" * 1000},
        "more than the",
    ),
    "dripping": (DRIP, "bytes a second"),
    "dripping the size of a chunk": (
        {"head": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunk": b"0", "pause": 0.02},
        "bytes a second",
    ),
    "dripping headers": ({**DRIP, "head": b"HTTP/1.1 200 OK\r\nX: "}, "no answer within"),
    "standing still": ({"chunk": b"x", "pause": 3.0}, "timed out"),
    "an error page": ({"head": b"HTTP/1.1 500 \x1b[31mred\r\n\r\n\x1b[2J", "chunk": b""}, "500"),
}


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_transfer_has_an_end_of_bytes_and_of_time(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    changes, words = HOSTILE[kind]
    is_endless = kind.startswith("endless")  # on a slow machine, too, it ends for its size and not for its rate
    monkeypatch.setattr(array_sets, "UNKNOWN_BYTES", 20_000 if is_endless else 1_000_000)
    for name, value in {"ANSWER": 0.6, "STALL": 0.5, "RATE": 0.4}.items():
        monkeypatch.setattr(download, f"{name}_SECONDS", value)
    monkeypatch.setattr(download, "MIN_BYTES_PER_SECOND", 1 if is_endless else 1_000_000)
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    (raw / IMAGES).unlink()
    handler = type("Handler", (_Hostile,), changes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.daemon_threads, httpd.block_on_close = True, False
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(array_sets, "FASHION_HTTPS", f"http://127.0.0.1:{httpd.server_port}/")
        begin = time.monotonic()
        line = refused(lambda: index(tmp_path, download=True), MachineError)
        httpd.shutdown()
    assert time.monotonic() - begin < 20
    assert words in line
    assert "\x1b" not in line
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_downloads_are_held_against_sha256_and_come_by_https(tmp_path: Path) -> None:
    data = os.environ.get("ALEXNET_DIST_TEST_DATA")
    if data is None:
        pytest.skip("ALEXNET_DIST_TEST_DATA is not set")
    for name, md5 in FashionMNIST.resources:
        content = (Path(data) / "fashion_mnist" / FASHION_RAW / name).read_bytes()
        assert array_sets.PUBLISHED[md5] == (hashlib.sha256(content).hexdigest(), len(content))
    assert len(array_sets.PUBLISHED[CIFAR10.tgz_md5].digest) == 64
    assert array_sets.FASHION_HTTPS.startswith("https://")
    assert CIFAR10.url.startswith("https://")


def test_pickles_that_are_exchanged_after_the_check_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may write into data.root: what was checked is read from a copy that they cannot change."""
    write_cifar10(tmp_path / "data", monkeypatch)
    read, opened = array_sets._read_batches, []

    def exchange_and_read(folder: Path, *words: Any) -> Any:
        opened.append(folder)
        for path in (tmp_path / "data" / CIFAR10.base_folder).iterdir():
            path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        assert folder.stat().st_mode & 0o77 == 0
        return read(folder, *words)

    monkeypatch.setattr(array_sets, "_read_batches", exchange_and_read)
    assert len(index(tmp_path, "cifar10")) == 100
    assert not opened[0].exists()


# -- the sets of a run ------------------------------------------------------------------------------------------------


def configure(tmp_path: Path, **data: Any) -> Config:
    values = {"source": "fashion_mnist", "root": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    return build_config({"train.epochs": 1, **{f"data.{key}": value for key, value in (values | data).items()}})


def split(tmp_path: Path, **data: Any) -> Splits:
    return build_splits(configure(tmp_path, **data).data, 0, False)


@pytest.mark.usefixtures("fashion")
def test_validation_is_split_off_and_the_test_part_is_the_test_set(tmp_path: Path) -> None:
    splits = split(tmp_path, val_fraction=0.25, test="test")
    assert splits.is_held_out
    assert splits.val is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 10, 20)
    assert np.bincount(splits.val.labels).tolist() == [1] * 10
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert find_root(configure(tmp_path).data) == Path()


@pytest.mark.usefixtures("fashion")
def test_the_test_part_can_be_the_validation_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = split(tmp_path, val="test")
    assert splits.val is not None
    assert not splits.is_held_out
    assert (len(splits.train), len(splits.val)) == (40, 20)
    assert caplog.text == ""
    split(tmp_path, val="train")
    assert "40 pictures are in more than one of train, val and test" in caplog.text


@pytest.mark.parametrize("key", ["train", "val", "test"])
@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
def test_a_part_that_there_is_not(tmp_path: Path, fashion: object, cifar: object, key: str, source: str) -> None:
    line = refused(lambda: split(tmp_path, source=source, **{key: "valid"}), UsageError)
    assert f"data.{key} is 'valid'" in line
    assert "train or test" in line


def test_a_synthetic_test_set(caplog: pytest.LogCaptureFixture) -> None:
    config = build_config({"data.source": "synthetic", "train.epochs": 1, "data.test": "test"})
    splits = build_splits(config.data, 5, False)
    assert caplog.messages == []  # the sets name their pictures alike, and these are others
    assert splits.val is not None
    assert splits.test is not None
    assert len(splits.test) == len(splits.val) == 64
    assert len({part.load_pixels(0).tobytes() for part in (splits.train, splits.val, splits.test)}) == 3
    config = build_config({"data.source": "synthetic", "train.epochs": 1, "data.test": "val"})
    assert "data.test is 'val'" in refused(lambda: build_splits(config.data, 5, False), UsageError)


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize(
    ("name", "data", "count"),
    [("val", {"val": "test"}, 20), ("test", {"test": "test"}, 20), ("val", {"val_fraction": 0.25}, 10)],
)
def test_evaluation(tmp_path: Path, name: str, data: dict[str, Any], count: int) -> None:
    config = configure(tmp_path, **data)
    trained_on = build_splits(config.data, config.seed, False).fingerprint if name == "val" else None
    card: Any = types.SimpleNamespace(classes=tuple(FashionMNIST.classes), data_fingerprint=trained_on)
    assert len(find_split(config, card, name, False)) == count
    card.classes = tuple(sorted(FashionMNIST.classes))
    line = refused(lambda: find_split(configure(tmp_path, **data), card, name, False), CheckpointError)
    assert "their order is another" in line


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.skipif(TEST_DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
def test_the_real_fashion_mnist(tmp_path: Path) -> None:
    root = Path(str(TEST_DATA)) / "fashion_mnist"
    before = list_files(root)
    shutil.copytree(root, tmp_path / "copy")
    for part, per_class in (("train", 6000), ("test", 1000)):
        found = index(tmp_path, part=part, root=root)
        assert np.bincount(found.labels).tolist() == [per_class] * 10
        theirs = FashionMNIST(tmp_path / "copy", train=part == "train", download=True)
        assert found.classes == tuple(theirs.classes)
        numbers = [int(path.rpartition("/")[2]) for path in found.paths]
        assert found.labels.tolist() == theirs.targets[numbers].tolist()
        for sample_id in range(0, len(found), 997):
            assert np.array_equal(found.load_pixels(sample_id, 1)[:, :, 0], theirs.data[numbers[sample_id]].numpy())
    assert list_files(root) == before
