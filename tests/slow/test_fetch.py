"""Pictures in object storage: a real S3 (moto's), a real https, kills, two trainings at once, the same weights."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.class_folders import write_class_folders
from helpers.object_server import Objects, serving
from helpers.pages import ROOT
from helpers.tiny import tiny_config
from helpers.waiting import wait_until

from alexnet_dist.data.remote.keep import Copy, find_copy, is_whole
from alexnet_dist.settings.reader import dump_config

ADDRESS = "s3://pics/flowers"
SECRET = "tEsTsEcReT"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of moto's S3, and where the server is."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    s3 = boto3.resource("s3", endpoint_url=url, **keys)
    s3.create_bucket(Bucket="pics")
    yield s3.Bucket("pics"), url
    running.stop()


def environment(url: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    return {**os.environ, "AWS_ENDPOINT_URL": url, **keys, "PYTHONPATH": str(ROOT)}


def start(verb: str, *words: object, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "launch" / f"{verb}.py"), *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    return text


def read_files(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def count_rows(copy: Copy) -> int:
    return copy.record.read_bytes().count(b"\n") - 1 if copy.record.exists() else 0


def test_killed_at_any_stage_it_goes_on(bucket: Any, tmp_path: Path) -> None:
    pics, url = bucket
    contents = {f"{number:02d}.bin": bytes([number]) * 3_000_000 for number in range(40)}
    for name, data in contents.items():
        pics.put_object(Key=f"large/{name}", Body=data)
    copy = find_copy("s3://pics/large", tmp_path)
    words = ("fetch", "s3://pics/large", "--data.cache_dir", tmp_path)
    for num_rows in (-1, 0, 5, 20):  # -1: before anything is there
        process = start("prepare", *words, env=environment(url))
        wait_until(lambda least=num_rows: least < 0 or count_rows(copy) > least or copy.seal.exists())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert is_whole(copy) == copy.seal.exists()
    had = count_rows(copy)
    text = finish(start("prepare", *words, env=environment(url)))
    assert read_files(copy.files) == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert "40 files" in text
    assert had >= 20
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in copy.folder.iterdir() if path.is_file())
    (copy.files / "07.bin").write_bytes(b"x" * 3_000_000)
    damaged = start("prepare", *words, "--check", env=environment(url))
    assert "07.bin" in damaged.communicate(timeout=60)[0]
    assert damaged.returncode == 3
    finish(start("prepare", *words, env=environment(url)))
    assert "40 files are as they were fetched" in finish(start("prepare", *words, "--check", env=environment(url)))


def configure(tmp_path: Path, name: str, root: object) -> list[str]:
    config = tiny_config(
        tmp_path / name,
        data__root=str(root),
        data__source="folder",
        data__train=".",
        data__cache_dir=str(tmp_path / "cache"),
        data__val_fraction=0.4,
        augment__resize=72,
        train__global_batch_size=4,
        train__epochs=None,
        train__max_steps=3,
    )
    (tmp_path / f"{name}.yaml").write_text(dump_config(config))
    return ["--config", str(tmp_path / f"{name}.yaml")]


def test_an_address_trains_the_same_network_as_the_folder(bucket: Any, tmp_path: Path) -> None:
    pics, url = bucket
    write_class_folders(tmp_path / "flowers")
    for path in (tmp_path / "flowers").rglob("*.*"):
        pics.upload_file(str(path), f"flowers/{path.relative_to(tmp_path / 'flowers').as_posix()}")
    finish(start("train", *configure(tmp_path, "folder", tmp_path / "flowers"), env=environment(url)))
    text = finish(start("train", *configure(tmp_path, "address", ADDRESS), env=environment(url)))
    assert "fetched" in text
    assert "folder: 6 train, 4 val" in text
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("folder", "address")]
    assert weights[0] == weights[1]
    assert f"root: {ADDRESS}" in (tmp_path / "address" / "config.yaml").read_text()
    written = [path.read_bytes() for path in (tmp_path / "address").rglob("*") if path.is_file()]
    assert SECRET.encode() not in b"".join(written)
    # The copy alone is enough for what comes later: the server may be gone.
    nowhere = environment("http://127.0.0.1:9")
    assert '"num_examples"' in finish(start("evaluate", "--model", tmp_path / "address", env=nowhere))
    more = [*configure(tmp_path, "address", ADDRESS), "--train.max_steps", "4"]
    assert "from step 3" in finish(start("train", *more, env=nowhere))


def test_two_trainings_at_once_fetch_once(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "flowers")
    files = [path for path in (tmp_path / "flowers").rglob("*.*") if path.is_file()]
    held = {f"pics/{path.relative_to(tmp_path).as_posix()}": path.read_bytes() for path in files}
    with serving(Objects(held)) as objects:
        env = environment(objects.address)
        runs = [start("train", *configure(tmp_path, name, ADDRESS), env=env) for name in ("one", "two")]
        for run in runs:
            finish(run)
    assert sorted(path for path, _ in objects.asked) == sorted(held)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_two_processes_fetch_once_and_fail_together(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "flowers")
    files = [path for path in (tmp_path / "flowers").rglob("*.*") if path.is_file()]
    held = {f"pics/{path.relative_to(tmp_path).as_posix()}": path.read_bytes() for path in files}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    with serving(Objects(held)) as objects:
        env = {**environment(objects.address), "ACCELERATE_USE_CPU": "true"}
        script = [*launcher, "--main_process_port", "0", str(ROOT / "launch" / "train.py")]

        def train(*words: str) -> subprocess.CompletedProcess[str]:
            command = [*script, *configure(tmp_path, "pair", ADDRESS), *words]
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

        objects.refusal = (403, "<Error><Code>AccessDenied</Code></Error>")
        failed = train()
        assert failed.returncode != 0
        assert failed.stderr.count("\nerror: no permission (s3://pics/flowers)") == 1, failed.stderr
        objects.refusal = None
        ended = train()
    assert ended.returncode == 0, ended.stderr
    assert sorted(path for path, _ in objects.asked) == sorted(held)


def test_ctrl_c_while_it_fetches(tmp_path: Path) -> None:
    with serving(Objects({f"pics/flowers/{number}": bytes(8_000_000) for number in range(4)}, pause=0.02)) as objects:
        words = ("fetch", ADDRESS, "--data.cache_dir", tmp_path)
        process = start("prepare", *words, env=environment(objects.address))
        copy = find_copy(ADDRESS, tmp_path)
        wait_until(lambda: sum(path.stat().st_size for path in copy.parts.glob("*")) > 2_000_000)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Run the same command again to continue" in text
        assert "Traceback" not in text
        objects.pause, sent = 0.0, objects.sent
        finish(start("prepare", *words, env=environment(objects.address)))
        assert objects.sent - sent < 4 * 8_000_000
    assert is_whole(copy)


def test_packed_shards_in_a_bucket_and_parquet_train_the_same_network(bucket: Any, tmp_path: Path) -> None:
    from helpers.parquet_files import write_folder_as_parquet

    pics, url = bucket
    write_class_folders(tmp_path / "flowers")
    out = tmp_path / "packed"
    words = ("--data.root", tmp_path, "--data.train", "flowers", "--out", out, "--shard_mb", 1)
    finish(start("prepare", "pack", *words, env=environment(url)))
    for path in out.iterdir():
        pics.upload_file(str(path), f"packed/{path.name}")
    write_folder_as_parquet(tmp_path / "flowers", tmp_path / "tables", ("cat", "dog", "red fox"))
    for path in (tmp_path / "tables").iterdir():
        pics.upload_file(str(path), f"parquet/{path.name}")
    runs = {
        "folder": (tmp_path / "flowers", "folder", "."),
        "tar": ("s3://pics/packed", "tar", "train"),
        "parquet": ("s3://pics/parquet", "parquet", "train"),
    }
    for name, (root, source, train) in runs.items():
        more = ("--data.source", source, "--data.train", train)
        text = finish(start("train", *configure(tmp_path, name, root), *more, env=environment(url)))
        assert f"{source}: 6 train, 4 val" in text
    weights = {(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in runs}
    assert len(weights) == 1


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(secret + certificate.public_bytes(pem))
    (folder / "trusted.pem").write_bytes(certificate.public_bytes(pem))
    return folder / "server.pem"


def test_https_with_a_connection_that_breaks(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    shards = {f"shards/train-{number:03d}.tar": os.urandom(5_000_000) for number in range(3)}
    cuts = {path: [2_000_000, 1_000_000, 0, 500_000] for path in shards}
    with serving(Objects(dict(shards), cuts=cuts), context) as objects:
        address = f"https://127.0.0.1:{objects.port}/shards/train-{{000..002}}.tar"
        words = ("fetch", address, "--data.cache_dir", tmp_path / "cache")
        untrusted = start("prepare", *words, env=environment(""))
        assert "certificate is not trusted" in untrusted.communicate(timeout=60)[0]
        assert untrusted.returncode == 5
        finish(start("prepare", *words, env={**environment(""), "SSL_CERT_FILE": str(tmp_path / "trusted.pem")}))
    expected = {path.removeprefix("shards/"): hashlib.sha256(data).hexdigest() for path, data in shards.items()}
    assert read_files(find_copy(address, tmp_path / "cache").files) == expected
    assert objects.sent < 2 * sum(map(len, shards.values()))
