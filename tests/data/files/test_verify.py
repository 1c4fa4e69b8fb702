from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import JPEG, encode, make_picture, save_jpeg
from PIL import Image

from alexnet_dist.base import progress
from alexnet_dist.base.durable import read_csv
from alexnet_dist.base.errors import MachineError, MemoryExhaustedError
from alexnet_dist.cli.main import run
from alexnet_dist.data.decode import decode_image
from alexnet_dist.data.files import verify
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.data.files.verify import read_verdicts, verify_files
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.sources.folders import list_class_folders, list_images, scan_folder
from alexnet_dist.data.sources.manifest import scan_manifest
from alexnet_dist.data.sources.manifest_read import ListForm

CUT = "cat/1.jpg"  # has a good header and half of its pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with four images each; one cannot be decoded to its end, which its header does not tell."""
    for name in ("cat", "dog"):
        for number in range(4):
            save_jpeg(tmp_path / "data" / "train" / name / f"{number}.jpg")
    cut_off(tmp_path / "data" / "train" / CUT)
    return tmp_path / "data" / "train"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really decoded."""
    names: list[str] = []

    def decode(path: str, **settings: Any) -> Any:
        names.append("/".join(Path(path).parts[-2:]))
        return decode_image(path, **settings)

    monkeypatch.setattr(verify, "decode_image", decode)
    return names


def cut_off(path: Path) -> None:
    data = encode(Image.fromarray(make_picture()), **JPEG)
    path.write_bytes(data[: len(data) // 2])


def change_time(path: Path, seconds: int) -> None:
    """Whatever the file system's clock says, the file is another one."""
    os.utime(path, (seconds, seconds))


def find_files(root: Path) -> list[FoundFile]:
    return [file for some in list_images(root, list_class_folders(root)) for file in some]


def verify_root(root: Path, **settings: Any) -> dict[str, str]:
    """Reasons of the bad files, by path."""
    files = find_files(root)
    values = {"cache_dir": root.parent.parent / "cache", "max_pixels": 10**6, "workers": 2, "progress": False}
    reasons = verify_files(FileSet(root, files), **(values | settings))
    return {file.path: reason for file, reason in zip(files, reasons, strict=True) if reason}


def scan(root: Path, on_bad_file: Any = "skip") -> SampleIndex:
    return scan_folder(root, classes=None, on_bad_file=on_bad_file, cache_dir=root.parent.parent / "cache")


def remembered(root: Path, suffix: str) -> Path:
    (path,) = (root.parent.parent / "cache" / "verified").glob(f"*{suffix}")
    return path


# -- what is bad ------------------------------------------------------------------------------------------------------


def test_a_file_with_a_good_header_and_half_its_pixels_is_bad(root: Path) -> None:
    found = verify_root(root)
    assert list(found) == [CUT]
    assert "truncated" in found[CUT]


def test_a_file_without_a_header_is_bad_too(root: Path) -> None:
    (root / "dog" / "0.jpg").write_bytes(b"")
    assert verify_root(root) == {CUT: verify_root(root)[CUT], "dog/0.jpg": "empty file"}


def test_pixel_limit(root: Path) -> None:
    save_jpeg(root / "dog" / "large.jpg", 64, 64)
    assert set(verify_root(root, max_pixels=64 * 64)) == {CUT}
    assert "too many pixels (64x64, the limit is 4095)" in verify_root(root, max_pixels=64 * 64 - 1)["dog/large.jpg"]
    assert set(verify_root(root, max_pixels=64 * 64)) == {CUT}


@pytest.mark.parametrize("workers", [1, 3])
def test_reasons_stand_in_the_order_of_the_files(root: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "FILES_AT_ONCE", 3)
    for number in (0, 3):
        cut_off(root / "dog" / f"{number}.jpg")
    assert list(verify_root(root, workers=workers)) == [CUT, "dog/0.jpg", "dog/3.jpg"]


def test_lack_of_memory_is_not_a_fault_of_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, **settings: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(verify, "decode_image", fail)
    with pytest.raises(MemoryExhaustedError, match=r"cat/0\.jpg.*lower --workers"):
        verify_root(root)
    assert read_verdicts(root, root.parent.parent / "cache") == {}


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_second_run_decodes_bad_files_alone(root: Path, decoded: list[str]) -> None:
    first = verify_root(root)
    assert len(decoded) == 8
    decoded.clear()
    assert verify_root(root) == first
    assert decoded == [CUT]


def test_again_decodes_everything(root: Path, decoded: list[str]) -> None:
    verify_root(root)
    decoded.clear()
    verify_root(root, again=True)
    assert len(decoded) == 8


def test_what_again_finds_bad_is_not_good_by_memory(root: Path, decoded: list[str]) -> None:
    path = root / "dog" / "2.jpg"
    data = bytearray(encode(Image.fromarray(make_picture()), format="PNG", compress_level=0))
    path.write_bytes(data)
    verify_root(root)
    before = path.stat()
    data[data.index(b"IDAT") + 100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that rots changes no time
    assert set(verify_root(root)) == {CUT}
    assert set(verify_root(root, again=True)) == {CUT, "dog/2.jpg"}
    decoded.clear()
    assert set(verify_root(root)) == {CUT, "dog/2.jpg"}
    assert sorted(decoded) == [CUT, "dog/2.jpg"]


@pytest.mark.parametrize("change", [lambda path: change_time(path, 1), lambda path: save_jpeg(path, 50, 50)])
def test_changed_file_is_decoded_again(root: Path, decoded: list[str], change: Callable[[Path], Any]) -> None:
    verify_root(root)
    decoded.clear()
    change(root / "dog" / "3.jpg")
    verify_root(root)
    assert sorted(decoded) == [CUT, "dog/3.jpg"]


def test_mended_file_is_forgotten(root: Path) -> None:
    verify_root(root)
    save_jpeg(root / CUT, 30, 30)
    assert verify_root(root) == {}
    assert read_verdicts(root, root.parent.parent / "cache") == {}


def test_bad_files_of_other_lists_are_kept(root: Path) -> None:
    verify_root(root)
    cut_off(root / "dog" / "0.jpg")
    (dog,) = (file for file in find_files(root) if file.path == "dog/0.jpg")
    cache = root.parent.parent / "cache"
    dogs = FileSet(root, [dog], listed_in=Path("dogs.txt"))
    verify_files(dogs, cache_dir=cache, max_pixels=10**6, workers=1, progress=False)
    assert {file.path for file in read_verdicts(root, cache)} == {CUT, "dog/0.jpg"}


def decode_until(number: int, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `stop` be called in place of decoding file `number`, counted from 0."""
    calls = itertools.count()

    def decode(path: str, **settings: Any) -> Any:
        if next(calls) == number:
            stop()
        return decode_image(path, **settings)

    monkeypatch.setattr(verify, "decode_image", decode)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [1, 5, 7])
def test_killed_run_goes_on_where_it_stopped(
    root: Path, decoded: list[str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = verify_root(root, cache_dir=root.parent.parent / "other")
    decoded.clear()
    child = os.fork()
    if child == 0:
        decode_until(number, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        monkeypatch.setattr(verify, "SAVE_SECONDS", 0.0)
        monkeypatch.setattr(verify, "FILES_AT_ONCE", 1)
        verify_root(root)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert verify_root(root) == expected
    assert len(decoded) == 8 - number + (number > 1)  # a bad file, here the second, is always decoded again


def test_interrupted_run_saves_what_it_found(root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify, "FILES_AT_ONCE", 1)
        decode_until(6, interrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            verify_root(root)
    verify_root(root)
    assert sorted(decoded) == [CUT, "dog/2.jpg", "dog/3.jpg"]


def _cut(data: bytes) -> bytes:
    return data[:-3]


def _flip_bits(data: bytes) -> bytes:
    return bytes(255 - value for value in data)


def _clear(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("suffix", [".good", ".csv"])
@pytest.mark.parametrize("damage", [_cut, _flip_bits, _clear])
def test_damaged_memory_only_costs_time(root: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    expected = verify_root(root)
    path = remembered(root, suffix)
    path.write_bytes(damage(path.read_bytes()))
    assert verify_root(root) == expected
    assert {file.path for file in read_verdicts(root, root.parent.parent / "cache")} == {CUT}


def test_memory_that_was_cut_off_is_whole_again(root: Path, decoded: list[str]) -> None:
    verify_root(root)
    path = remembered(root, ".good")
    path.write_bytes(path.read_bytes()[:-3])
    verify_root(root)
    assert path.stat().st_size == 7 * 8
    decoded.clear()
    verify_root(root)
    assert decoded == [CUT]


def test_memory_that_cannot_be_written_is_said(root: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(MachineError, match=r"--data\.cache_dir"):
        verify_root(root, cache_dir=tmp_path / "occupied")


@pytest.mark.parametrize("name", ["a,b 'c'.jpg", 'say "x".jpg', "two\r\nlines.jpg", os.fsdecode(b"\xff\xfe.jpg")])
def test_odd_names_are_remembered(root: Path, name: str, decoded: list[str]) -> None:
    save_jpeg(root / "dog" / name)
    cut_off(root / "cat" / name)
    assert set(verify_root(root)) == {CUT, f"cat/{name}"}
    decoded.clear()
    verify_root(root)
    assert sorted(decoded) == sorted([CUT, f"cat/{name}"])
    assert f"dog/{name}" in scan(root).paths
    assert f"cat/{name}" not in scan(root).paths


def test_a_line_appears_only_when_it_takes_long(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verify_root(root, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    verify_root(root, progress=True, again=True)
    assert "8/8 images" in capsys.readouterr().err


# -- what training makes of it ----------------------------------------------------------------------------------------


def test_scan_knows_nothing_of_files_that_nobody_verified(root: Path) -> None:
    assert len(scan(root)) == 8


def test_skip_leaves_verified_bad_files_out(root: Path) -> None:
    found = verify_root(root)
    index = scan(root)
    assert CUT not in index.paths
    assert len(index) == 7
    assert {bad.path: bad.reason for bad in index.bad_files} == found


def test_fail_names_all_verified_bad_files(root: Path) -> None:
    (root / "dog" / "0.jpg").write_bytes(b"<html>")
    cut_off(root / "dog" / "1.jpg")
    verify_root(root)
    with pytest.raises(BadFilesError, match=r"cat/1\.jpg.*truncated.* 2 more.*on_bad_file: skip") as error:
        scan(root, "fail")
    assert [bad.path for bad in error.value.bad_files] == [CUT, "dog/0.jpg", "dog/1.jpg"]


def test_mended_file_comes_back(root: Path) -> None:
    verify_root(root)
    save_jpeg(root / CUT, 30, 30)
    assert CUT in scan(root, "fail").paths


@pytest.mark.parametrize("on_bad_file", ["skip", "fail"])
def test_manifest_uses_what_was_found(root: Path, on_bad_file: Any) -> None:
    data = root.parent
    (data / "list.txt").write_text(f"train/{CUT} cat\ntrain/dog/0.jpg dog\n")
    settings = {"cache_dir": data.parent / "cache", "on_bad_file": on_bad_file}
    arguments: Any = {**settings, "classes": None, "form": ListForm()}
    assert len(scan_manifest(data, data / "list.txt", **arguments)) == 2
    run("prepare", verb_words(root, "--data.source", "manifest", "--data.train", "list.txt"))
    if on_bad_file == "fail":
        with pytest.raises(BadFilesError, match="truncated"):
            scan_manifest(data, data / "list.txt", **arguments)
    else:
        assert scan_manifest(data, data / "list.txt", **arguments).paths == ("train/dog/0.jpg",)


def test_scan_of_verified_files_is_not_slower(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_root(root)
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        assert path.suffix != ".good", "read the list of good files"
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(verify, "decode_image", lambda *_, **__: pytest.fail("decoded"))
    assert len(scan(root)) == 7


# -- the verb ---------------------------------------------------------------------------------------------------------


def verb_words(root: Path, *words: str) -> list[str]:
    work = root.parent.parent
    fixed = ["--data.root", str(root.parent), "--data.cache_dir", str(work / "cache")]
    return ["verify", *fixed, "--out", str(work / "bad.csv"), *words]


def read_out(root: Path) -> list[dict[str, str]]:
    return read_csv(root.parent.parent / "bad.csv")


def test_verb_lists_all_bad_files_of_all_sets(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root, root.parent / "val")
    (root.parent / "val" / "dog" / "2.jpg").write_bytes(b"")
    assert run("prepare", verb_words(root, "--data.val", "val", "--workers", "2")) == 3
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split() for line in printed.out.splitlines()[:2]] == [
        ["train", "8", "images", "1", "bad"],
        ["val", "8", "images", "2", "bad"],
    ]
    rows = read_out(root)
    assert [row["path"] for row in rows] == [f"train/{CUT}", f"val/{CUT}", "val/dog/2.jpg"]
    assert "truncated" in rows[0]["reason"]
    assert rows[2]["reason"] == "empty file"


def test_verb_says_when_all_is_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_jpeg(root / CUT)
    assert run("prepare", verb_words(root)) == 0
    assert "no bad file" in capsys.readouterr().out
    assert read_out(root) == []


def test_verb_lists_what_a_manifest_names_in_vain(root: Path) -> None:
    text = f"path,label\ntrain/{CUT},red fox\ntrain/gone.jpg,dog\ntrain/dog/0.jpg,dog\ntrain/dog/0.jpg,dog\n"
    (root.parent / "list.csv").write_text(text)
    assert run("prepare", verb_words(root, "--data.source", "manifest", "--data.train", "list.csv")) == 3
    assert [row["path"] for row in read_out(root)] == [f"train/{CUT}", "train/gone.jpg"]
    assert read_out(root)[1]["reason"] == "No such file or directory"


def test_verb_replaces_an_earlier_list_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, given = ["verify", "--data.root", str(root.parent)], ["--out", "bad_files.csv"]
    codes = [run("prepare", words) for _ in range(2)]  # by default the list of the time before is replaced
    assert codes == [3, 3]
    assert run("prepare", [*words, *given]) == 2
    assert "--out is there already (bad_files.csv); give another --out, or --overwrite" in capsys.readouterr().err
    assert run("prepare", [*words, *given, "--overwrite"]) == 3
    (tmp_path / "bad_files.csv").write_text("mine")
    assert run("prepare", words) == 2
    assert (tmp_path / "bad_files.csv").read_text() == "mine"


def test_verb_writes_nothing_below_the_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.parent.rglob("*"))
    run("prepare", verb_words(root))
    assert sorted(root.parent.rglob("*")) == before
    assert run("prepare", [*verb_words(root), "--out", str(root.parent / "bad.csv")]) == 2
    assert "nothing is written below data.root" in capsys.readouterr().err
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ([], 2, ["no preparation is named", "verify, fetch, index, cache, parity"]),
        (["--workers", "1"], 2, ["no preparation is named"]),
        (["verfiy"], 2, ["unknown preparation 'verfiy'", "did you mean verify?"]),
        (["zzz"], 2, ["unknown preparation 'zzz'", "verify, fetch, index, cache, parity"]),
        (["verify"], 2, ["data.root is missing"]),
        (["verify", "--data.rot", "x"], 2, ["--data.rot", "did you mean --data.root?"]),
        (["verify", "--data.root", "nowhere"], 3, ["data.root is missing", "nowhere"]),
        (["verify", "--data.root", ".", "--workers", "0"], 2, ["--workers must be 1 or more"]),
        (["verify", "--data.source", "cifar10", "--data.root", "."], 2, ["nothing to verify", "no image files"]),
        (["verify", "--config", "digts"], 2, ["digts", "did you mean digits?"]),
    ],
)
def test_words_that_cannot_be_meant(
    words: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("prepare", words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "spoil", [shutil.rmtree, lambda folder: shutil.rmtree(folder / "cat") or (folder / "cat").mkdir()]
)
def test_verb_on_folders_without_images(
    root: Path, spoil: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(root)
    assert run("prepare", verb_words(root)) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_verb_needs_a_place_for_its_list(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", [*verb_words(root), "--out", str(tmp_path / "none" / "bad.csv")]) == 5
    assert "no folder for --out" in capsys.readouterr().err


def test_interrupted_verb_says_how_to_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    decode_until(3, interrupt, monkeypatch)
    assert run("prepare", verb_words(root)) == 130
    assert "Run the same command again to continue." in capsys.readouterr().err


def test_digests_tell_path_size_and_time_apart() -> None:
    files = [FoundFile(path, size, time) for path in ("a", "a1", "b") for size in (1, 11) for time in (1, 11)]
    digests = [verify._hash_file(file) for file in files]
    assert len(set(digests)) == len(files)
    assert np.array(digests, np.uint64).tolist() == digests
