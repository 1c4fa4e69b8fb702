from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers.object_server import AZURE_ACCOUNT, AZURE_KEY, Objects, serving
from helpers.refusals import refused

from alexnet_dist.base.errors import AlexNetDistError, DataError, MachineError
from alexnet_dist.data.remote import store, transfer
from alexnet_dist.data.remote.keep import fetch_copy, find_copy, find_damaged, forget, is_whole, read_rows

ROOT = "s3://pics/flowers"
BIG = bytes(range(256)) * 16_384  # 4 MB
SECRET = "tEsTsEcReT"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(store, "RETRIES", 0)  # obstore goes on with a broken answer by itself, as often as this


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    contents = {f"pics/flowers/train/rose/{name}.jpg": name.encode() for name in ("1", "2", "a #%é")}
    contents |= {"pics/flowers/val/": b"", "pics/flowers/val/rose/1.jpg": b"val", "pics/other/x": b"other"}
    with serving(Objects(contents)) as objects:
        monkeypatch.setenv("AWS_ENDPOINT_URL", objects.address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield objects


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(server: Objects, prefix: str = "pics/flowers/") -> dict[str, bytes]:
    found = {path.removeprefix(prefix): data for path, data in server.contents.items() if path.startswith(prefix)}
    return {path: data for path, data in found.items() if not path.endswith("/")}


def fetch(tmp_path: Path, address: str = ROOT, again: bool = False) -> dict[str, bytes]:
    root = fetch_copy(address, tmp_path, shown=False, again=again)
    assert root == find_copy(address, tmp_path).root
    return read_files(root) if root.is_dir() else {root.name: root.read_bytes()}


def test_a_whole_copy_needs_no_network(server: Objects, tmp_path: Path) -> None:
    assert fetch(tmp_path) == expected(server)
    num_asked = len(server.asked)
    server.refusal = (500, "")
    assert fetch(tmp_path) == expected(server)
    assert len(server.asked) == num_asked == 4
    times = {path.stat().st_mtime for path in find_copy(ROOT, tmp_path).files.rglob("*.jpg")}
    assert times == {datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()}  # the store's, on every machine
    assert SECRET.encode() not in b"".join(read_files(tmp_path).values())


def test_what_has_changed_is_fetched_and_what_is_gone_is_removed(server: Objects, tmp_path: Path) -> None:
    fetch(tmp_path)
    server.contents["pics/flowers/train/rose/1.jpg"] = b"!"  # of the same size
    del server.contents["pics/flowers/val/rose/1.jpg"]
    server.asked.clear()
    assert fetch(tmp_path)["train/rose/1.jpg"] == b"1"  # training keeps what it has begun with
    assert fetch(tmp_path, again=True) == expected(server)
    assert server.asked == [("pics/flowers/train/rose/1.jpg", 0)]
    assert not (find_copy(ROOT, tmp_path).files / "val").exists()


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("s3://pics/flowers/train/rose/1.jpg", ["1.jpg"]),
        ("s3://pics/flowers/{train,val}/rose/1.jpg", ["train/rose/1.jpg", "val/rose/1.jpg"]),
        ("s3://pics", ["flowers/train/rose/1.jpg", "other/x"]),
        ("{web}/pics/flowers/train/rose/{{1..2}}.jpg", ["1.jpg", "2.jpg"]),
        ("{web}/pics/flowers/train/rose/a%20%23%25%C3%A9.jpg", ["a #%é.jpg"]),
    ],
)
def test_objects_that_an_address_names(server: Objects, tmp_path: Path, address: str, names: list[str]) -> None:
    whole = address.format(web=server.address) if "web" in address else address
    found = fetch(tmp_path, whole)
    assert set(names) <= set(found)
    assert find_copy(whole, tmp_path).root.is_file() == (len(names) == 1)  # one object is a file, several are a folder
    assert len(found) == len(names) or address == "s3://pics"


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_stores(server: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    account = {"gcs_base_url": server.address, "disable_oauth": True, "client_email": ""}
    (tmp_path / "account.json").write_text(json.dumps({**account, "private_key": "", "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", server.address)
    server.cuts = {"pics/flowers/val/rose/1.jpg": [1]}
    address = f"{scheme}://pics/flowers"
    assert fetch(tmp_path, address) == expected(server)
    num_asked = len(server.asked)
    assert fetch(tmp_path, address, again=True) == expected(server)
    assert len(server.asked) == num_asked


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_broken_connection_is_gone_on_with(server: Objects, tmp_path: Path, has_tags: bool) -> None:
    server.contents, server.has_tags = {"pics/flowers/big": BIG}, has_tags
    server.cuts = {"pics/flowers/big": [3_000_000, 500_000, 0]}
    address = ROOT if has_tags else f"{server.address}/pics/flowers/big"
    assert fetch(tmp_path, address) == {"big": BIG}
    assert len(server.asked) == 4
    assert server.asked[-1][1] > 0
    assert server.sent < 2 * len(BIG)


def test_a_server_without_ranges_gives_all_of_it_again(server: Objects, tmp_path: Path) -> None:
    server.contents, server.has_ranges = {"pics/flowers/big": BIG}, False
    server.cuts = {"pics/flowers/big": [3_000_000]}
    assert fetch(tmp_path) == {"big": BIG}


def test_a_connection_that_brings_nothing_new_is_given_up(server: Objects, tmp_path: Path) -> None:
    server.contents, server.cuts = {"pics/flowers/big": BIG}, {"pics/flowers/big": [1000, *[0] * 50]}
    line = refused(lambda: fetch(tmp_path), MachineError)
    assert "s3://pics/flowers/big" in line
    assert "goes on where it stopped" in line
    assert not is_whole(find_copy(ROOT, tmp_path))
    server.cuts.clear()
    assert fetch(tmp_path) == {"big": BIG}


def test_an_object_that_changes_between_two_parts_is_the_new_one(server: Objects, tmp_path: Path) -> None:
    new = BIG[::-1]
    server.contents, server.changes = {"pics/flowers/big": BIG}, {"pics/flowers/big": new}
    server.cuts = {"pics/flowers/big": [3_000_000]}
    assert fetch(tmp_path) == {"big": new}
    assert read_rows(find_copy(ROOT, tmp_path))["big"].tag != ""


def test_a_part_of_an_earlier_process_is_gone_on_with_unless_it_is_of_another_content(
    server: Objects, tmp_path: Path
) -> None:
    server.contents = {"pics/flowers/big": BIG}
    copy = find_copy(ROOT, tmp_path)
    (file,) = store.list_files(store.open_store(copy.address), copy.address)
    copy.parts.mkdir(parents=True)
    (copy.parts / transfer.name_part(file)).write_bytes(BIG[:2_000_000])
    other = store.RemoteFile(file.key, file.path, file.size, '"another"')
    (copy.parts / transfer.name_part(other)).write_bytes(b"x" * 3_000_000)
    assert fetch(tmp_path) == {"big": BIG}
    assert server.asked == [("pics/flowers/big", 2_000_000)]
    assert not copy.parts.exists()


@pytest.mark.parametrize("left", ["no seal", "a cut line", "no record", "a file of another size", "a file too many"])
def test_what_a_kill_has_left_is_not_trusted(server: Objects, tmp_path: Path, left: str) -> None:
    fetch(tmp_path)
    copy = find_copy(ROOT, tmp_path)
    if left == "no record":
        copy.record.unlink()
    elif left == "a file of another size":
        (copy.files / "val/rose/1.jpg").write_bytes(b"half")
    else:
        copy.seal.unlink()
    if left == "a cut line":
        copy.record.write_bytes(copy.record.read_bytes()[:-30])
    if left == "a file too many":
        (copy.files / "val/rose/2.jpg").write_bytes(b"gone since")
    assert not is_whole(copy)
    assert fetch(tmp_path) == expected(server)
    assert is_whole(copy)


REFUSALS: dict[str, tuple[int, str, type[AlexNetDistError], str]] = {
    "permission": (
        403,
        "<Error><Code>AccessDenied</Code></Error>",
        MachineError,
        r"403 Forbidden \(AccessDenied\); set A",
    ),
    "key": (
        403,
        f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>",
        MachineError,
        "SignatureDoesNotMatch",
    ),
    "bucket": (404, "<Error><Code>NoSuchBucket</Code></Error>", DataError, "NoSuchBucket"),
    "region": (301, "", MachineError, "wrong region"),
    "other region": (
        400,
        "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
        MachineError,
        "set AWS_REGION=eu-west-1",
    ),
    "server": (503, "", MachineError, "503 Service Unavailable"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_server_refuses_is_said_in_one_line(server: Objects, tmp_path: Path, name: str) -> None:
    status, body, kind, words = REFUSALS[name]
    server.refusal = (status, body)
    with pytest.raises(kind, match=words) as error:
        fetch(tmp_path)
    assert SECRET not in str(error.value)
    assert not is_whole(find_copy(ROOT, tmp_path))


@pytest.mark.parametrize(
    "address", ["s3://pics/nothing", "{web}/nothing.tar", "s3://pics/flowers/{train,nothing}/rose/1.jpg"]
)
def test_an_address_where_nothing_is(server: Objects, tmp_path: Path, address: str) -> None:
    whole = address.format(web=server.address) if "web" in address else address
    assert "nothing" in refused(lambda: fetch(tmp_path, whole), DataError)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be connected to" in refused(lambda: fetch(tmp_path, "http://127.0.0.1:9/x.tar"), MachineError)


def test_names_that_lead_elsewhere_are_refused(server: Objects, tmp_path: Path) -> None:
    server.contents["pics/flowers/a/../../../evil"] = b"evil"
    with pytest.raises(AlexNetDistError):
        fetch(tmp_path)
    assert not list(tmp_path.rglob("evil"))


def test_a_disk_that_is_too_small(server: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    assert "data.cache_dir" in refused(lambda: fetch(tmp_path), MachineError)
    assert server.asked == []


def test_a_disk_that_is_full_in_the_middle(server: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(transfer.os, "fsync", fail)
        assert "No space left" in refused(lambda: fetch(tmp_path), MachineError)
    assert not is_whole(find_copy(ROOT, tmp_path))
    assert fetch(tmp_path) == expected(server)


def test_of_several_that_want_it_at_once_one_fetches(server: Objects, tmp_path: Path) -> None:
    found: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected(server)] * 3
    assert len(server.asked) == 4


def test_damaged_files_are_found_and_fetched_again(server: Objects, tmp_path: Path) -> None:
    fetch(tmp_path)
    copy = find_copy(ROOT, tmp_path)
    (copy.files / "val/rose/1.jpg").write_bytes(b"VAL")  # of the same size
    assert find_damaged(copy, shown=False) == ["val/rose/1.jpg"]
    forget(copy, ["val/rose/1.jpg"])
    assert not is_whole(copy)
    assert fetch(tmp_path) == expected(server)
    assert find_damaged(copy, shown=False) == []
