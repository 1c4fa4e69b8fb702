"""A data set of the Hugging Face Hub, from a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.class_folders import write_class_folders
from helpers.pages import ROOT
from helpers.parquet_files import write_folder_as_parquet
from helpers.tiny import tiny_config

from alexnet_dist.data.remote.keep import find_copy, is_whole
from alexnet_dist.settings.reader import dump_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = "hf://datasets/owner/flowers"
SECRET = "hf_tEsTsEcReT"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/owner/gated"):
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        elif path == "/api/datasets/owner/flowers/revision/none":
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/datasets/owner/flowers"):
            self._answer(200, json.dumps(self._list()).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/datasets/owner/flowers/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            data = self.files[name]
            self.asked += [name] if self.command == "GET" else []
            tag = hashlib.sha256(data).hexdigest()
            self._answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data))})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _list(self) -> dict[str, object]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(data).hexdigest(),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100},
            }
            for name, data in self.files.items()
        ]
        return {"id": "owner/flowers", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[_Hub]]:
    write_class_folders(tmp_path / "flowers")
    write_folder_as_parquet(tmp_path / "flowers", tmp_path / "made" / "data", ("cat", "dog", "red fox"))
    files = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "made" / "data").iterdir()}
    handler = type("Hub", (_Hub,), {"files": {**files, "README.md": b"# flowers"}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def call(hub: type[_Hub], tmp_path: Path, verb: str, *words: object) -> subprocess.CompletedProcess[str]:
    endpoint = f"http://127.0.0.1:{hub.port}"  # type: ignore[attr-defined]
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": SECRET, "HF_HOME": str(tmp_path / "hf")}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(ROOT / "launch" / f"{verb}.py"), *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


def test_a_data_set_is_fetched_once_and_trains_the_network_of_the_folder(hub: type[_Hub], tmp_path: Path) -> None:
    weights = []
    for name, root, more in (
        ("folder", str(tmp_path / "flowers"), {"data__source": "folder", "data__train": "."}),
        ("hub", ADDRESS, {"data__source": "parquet"}),
    ):
        values = {"data__root": root, "data__cache_dir": str(tmp_path / "cache"), "data__val_fraction": 0.4}
        steps = {"train__epochs": None, "train__max_steps": 3, "augment__resize": 72, "train__global_batch_size": 4}
        config = tiny_config(tmp_path / name, **values, **steps, **more)
        (tmp_path / f"{name}.yaml").write_text(dump_config(config))
        ended = call(hub, tmp_path, "train", "--config", tmp_path / f"{name}.yaml")
        assert ended.returncode == 0, ended.stderr
        assert "6 train, 4 val" in ended.stderr
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert sorted(hub.asked) == sorted(hub.files)
    assert is_whole(find_copy(ADDRESS, tmp_path / "cache"))
    again = call(hub, tmp_path, "prepare", "fetch", ADDRESS, "--data.cache_dir", tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert len(hub.asked) == len(hub.files)
    places = [tmp_path / "cache", tmp_path / "hub"]
    written = [path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()]
    assert SECRET.encode() not in b"".join(written)


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("hf://datasets/owner/gated", 5, "HF_TOKEN"),
        ("hf://datasets/owner/nothing", 3, "check the name"),
        ("hf://datasets/owner/flowers@none", 3, "no revision 'none'"),
        ("hf://datasets/owner/flowers/other", 3, "no file below 'other'"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: type[_Hub], tmp_path: Path, address: str, code: int, words: str) -> None:
    failed = call(hub, tmp_path, "prepare", "fetch", address, "--data.cache_dir", tmp_path / "cache")
    assert failed.returncode == code, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in failed.stderr


def test_a_part_of_a_data_set(hub: type[_Hub], tmp_path: Path) -> None:
    address = f"{ADDRESS}@main/data/train-00000-of-00002.parquet"
    ended = call(hub, tmp_path, "prepare", "fetch", address, "--data.cache_dir", tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    assert hub.asked == ["data/train-00000-of-00002.parquet"]
