from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_dist.base.errors import MachineError
from alexnet_dist.data.index import BadFile, BadFilesError
from alexnet_dist.runs import folder as run_folder
from alexnet_dist.runs.folder import list_bad_files, open_run_folder, write_bad_files


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("new", [False, True])
def test_second_start_in_a_held_folder_is_refused(tmp_path: Path, new: bool) -> None:
    with open_run_folder(tmp_path / "run", new=False):
        (tmp_path / "run" / "metrics.jsonl").write_bytes(b"{}\n")
        with pytest.raises(MachineError, match=r"another run is using this run folder .*run"):
            open_run_folder(tmp_path / "run", new=new)
    open_run_folder(tmp_path / "run", new=False).release()  # free again
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_new_renames_the_old_run_and_deletes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        with open_run_folder(tmp_path / "run", new=True):
            (tmp_path / "run" / "mark").write_text(str(number))
    assert list_names(tmp_path) == ["run", "run.1", "run.2"]
    assert [(tmp_path / name / "mark").read_text() for name in ("run.1", "run.2", "run")] == ["0", "1", "2"]


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot write run \(.*file/run\)"):
        open_run_folder(tmp_path / "file" / "run", new=False)


def test_bad_files_are_listed_once_relative_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    bad = [BadFile(str(root / "b,c" / "1.jpg"), "cut"), BadFile(str(root / "a.jpg"), 'a "word"')]
    write_bad_files(tmp_path, [*bad, *bad], root)
    assert (tmp_path / "bad_files.csv").read_text() == 'path,reason\na.jpg,"a ""word"""\n"b,c/1.jpg",cut\n'


def test_bad_files_are_written_again_only_where_they_changed(tmp_path: Path) -> None:
    bad, path = [BadFile(str(tmp_path / "a,b.jpg"), 'a "word"')], tmp_path / "bad_files.csv"
    write_bad_files(tmp_path, bad, tmp_path)
    before, written = path.stat().st_ino, path.read_bytes()
    write_bad_files(tmp_path, bad, tmp_path)
    assert path.stat().st_ino == before
    for damage in (b"", b"path,reason\nb.jpg,cut\n", None):
        path.unlink() if damage is None else path.write_bytes(damage)
        write_bad_files(tmp_path, bad, tmp_path)
        assert path.read_bytes() == written


def test_bad_files_of_a_machine_with_its_own_root_are_listed_as_they_lie_below_ours(tmp_path: Path) -> None:
    for root, wanted in ((tmp_path / "theirs", "train/a.jpg"), (None, "../theirs/train/a.jpg")):
        error = BadFilesError(tmp_path / "theirs" / "train", (BadFile("a.jpg", "cut"),), "mend it")
        error.data_root = root
        list_bad_files(tmp_path, error, tmp_path / "ours")
        assert (tmp_path / "bad_files.csv").read_text() == f"path,reason\n{wanted},cut\n"


def test_no_bad_files_no_list(tmp_path: Path) -> None:
    write_bad_files(tmp_path, [], tmp_path)
    assert list_names(tmp_path) == []
