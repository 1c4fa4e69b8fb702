"""The verb `serve` as its visitors meet it: the API, Gradio's page, and what they cannot reach."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.browser import Page, find_chromium, new_page
from helpers.models import write_model_and_pictures
from helpers.ports import taken_port
from helpers.serving import Served, served

from alexnet_dist.cli.main import run

pytest.importorskip("gradio", reason="needs the extra demo")

import httpx

pytestmark = pytest.mark.slow

DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
AXE = os.environ.get("ALEXNET_DIST_AXE")
VISITORS = 20
LOOPBACK = ("127.0.0.1", "::1", "localhost", "/", "None")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_pictures(tmp_path_factory.mktemp("model"), ("<b>cat</b>", "dog"))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(folder / "model", tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `predict` says of the three pictures."""
    out, paths = (
        tmp_path_factory.mktemp("rows") / "rows.jsonl",
        [folder / f"pictures/{number}.png" for number in range(3)],
    )
    words = ["--model", str(folder), *map(str, paths), "--out", str(out), "--device", "cpu", "--quiet"]
    assert run("predict", words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [{key: row[key] for key in ("class", "words", "confidence", "topk")} for row in rows]


def agree(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two answers are equal but for the last bits: predict computes its pictures in one batch."""
    flat = [
        [(row["class"], row["words"], row["confidence"]) for row in (one, *one["topk"])] for one in (found, expected)
    ]
    return found.keys() == expected.keys() and all(
        one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=1e-5) for one, other in zip(*flat, strict=True)
    )


def test_twenty_requests_at_once_are_answered_right(
    server: Served, folder: Path, expected: list[dict[str, Any]]
) -> None:
    pictures = [(folder / f"pictures/{number}.png").read_bytes() for number in range(4)]

    def ask(number: int) -> httpx.Response:
        picture = pictures[number % 4]
        given = {"content": picture} if number < 10 else {"files": {"file": picture}}
        return httpx.post(f"{server.address}/api/predict", timeout=60, **given)

    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(ask, range(VISITORS)))
    for number, answer in enumerate(answers):
        if number % 4 == 3:
            assert (answer.status_code, answer.json()["error"][:12]) == (415, "not an image")
        else:
            assert answer.status_code == 200
            assert agree(answer.json(), expected[number % 4])


def test_a_large_file_is_refused_while_it_comes(server: Served) -> None:
    large = b"\0" * 30_000_000
    for path, given in (
        ("/api/predict", {"content": iter([large[:1_000_000]] * 30)}),  # of a length that no header tells
        ("/api/predict", {"files": {"file": large}}),
        ("/gradio_api/upload", {"files": {"files": large}}),
    ):
        with contextlib.suppress(httpx.WriteError):  # the connection is closed while more comes
            assert httpx.post(f"{server.address}{path}", timeout=60, **given).status_code == 413
    assert server.process.poll() is None
    assert httpx.get(server.address, timeout=60).status_code == 200


def show(server: Served, client: httpx.Client, path: str, number: int = 0) -> tuple[Any, str]:
    """What Gradio's page is given for a picture that lies at a path of the server: the bars, and what is below them."""
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    (event,) = client.get("/config").json()["dependencies"]
    session = f"visitor{number}{os.path.basename(path)}"
    joined = {"data": [upload], "fn_index": event["id"], "session_hash": session}
    assert client.post("/gradio_api/queue/join", json=joined).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                bars, below = message["output"].get("data", (None, json.dumps(message["output"])))
                return bars, below
    raise AssertionError("no answer")


def send(client: httpx.Client, picture: Path) -> str:
    """Where the server has put a picture."""
    answer = client.post("/gradio_api/upload", files={"files": (picture.name, picture.read_bytes(), "image/png")})
    (path,) = answer.json()
    return str(path)


def test_twenty_visitors_of_the_page_see_their_own_pictures(
    server: Served, folder: Path, expected: list[dict[str, Any]]
) -> None:
    def visit(number: int) -> tuple[Any, str]:
        with httpx.Client(base_url=server.address, timeout=120) as client:
            return show(server, client, send(client, folder / f"pictures/{number % 4}.png"), number)

    with ThreadPoolExecutor(VISITORS) as pool:
        seen = list(pool.map(visit, range(VISITORS)))
    for number, (bars, below) in enumerate(seen):
        assert "<b>cat" not in below
        if number % 4 == 3:
            assert not (bars or {}).get("label")
            assert "This file gets no answer: not an image" in below
            continue
        answer = expected[number % 4]
        shown = {row["label"]: row["confidence"] for row in bars["confidences"]}
        assert shown == pytest.approx({row["class"]: row["confidence"] for row in answer["topk"]}, abs=1e-5)
        assert "What speaks for" in below


def test_a_visitor_names_no_other_file_and_no_address(server: Served, folder: Path) -> None:
    picture = folder / "pictures/0.png"
    with taken_port() as port, httpx.Client(base_url=server.address, timeout=60) as client:
        for number, path in enumerate((str(picture), "/etc/passwd", f"http://127.0.0.1:{port}/0.png")):
            bars, below = show(server, client, path, number)
            assert bars is None
            assert "What speaks for" not in below
            assert client.get(f"/gradio_api/file={path}").status_code == 404
        assert f"{port}" not in server.contacts.read_text()
        mine = send(client, picture)
        assert client.get(f"/gradio_api/file={mine}").content == picture.read_bytes()


def test_no_other_host_is_asked_for_anything(server: Served) -> None:
    page = httpx.get(server.address, timeout=60).text
    assert "fonts.googleapis" not in page
    hosts = [line.split(maxsplit=1)[1].strip("('\"").split("'")[0] for line in server.contacts.read_text().splitlines()]
    assert [host for host in hosts if not host.startswith(LOOPBACK)] == []


def test_a_port_that_is_taken_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with taken_port() as port:
        assert run("serve", [str(folder), "--port", str(port), "--quiet"]) == 5
    assert capsys.readouterr().err.startswith(
        f"error: cannot listen at port {port} (127.0.0.1): Address already in use"
    )


@pytest.fixture
def page(server: Served) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium")
    with new_page(program) as found:
        found.look(1000, 900)
        found.open(server.address)
        found.wait("document.querySelector('input[type=file]') !== null")
        yield found


def give(page: Page, picture: Path, sign: str) -> str:
    """The text of the page after a picture was chosen, and a sign of its answer has come."""
    page.give_file("input[type=file]", picture)
    page.wait(f"document.querySelector('{sign}') !== null")
    return str(page.evaluate("document.body.innerText"))


def clear(page: Page) -> None:
    """Take the picture away with the button for that."""
    page.wait("document.querySelector('button[aria-label=\"Clear\"]')?.click() ?? true")
    page.wait("document.querySelector('.answer, .refusal') === null")
    page.wait("document.querySelector('input[type=file]') !== null")


def test_a_browser_sees_the_answer_and_asks_nobody_else(
    server: Served, page: Page, folder: Path, tmp_path: Path
) -> None:
    text = give(page, folder / "pictures/0.png", ".answer")
    assert "<b>cat</b>" in text  # shown as it is written
    assert page.evaluate("document.querySelectorAll('b').length") == 0
    assert all(word in text for word in ("dog", "output 2", "What speaks for", "Filter "))
    drawn = "[...document.querySelectorAll('.answer img')].map(image => image.naturalWidth > 0 && image.alt !== '')"
    assert page.evaluate(drawn) == [True] * (3 + 2 * 8)
    clear(page)
    (tmp_path / "a.png").write_text("no picture")
    assert "This file gets no answer: not an image" in give(page, tmp_path / "a.png", ".refusal[role=alert]")
    clear(page)
    assert "What speaks for" in give(page, folder / "pictures/1.png", ".answer")
    for is_dark, width in ((True, 1000), (False, 360)):
        page.look(width, 800, is_dark)
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing is wider than the window
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != (
            "rgb(255, 255, 255)" if is_dark else ""
        )
    hosts = {urlsplit(address).netloc for address in page.requests if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(server.address).netloc}
    assert page.complaints == []


@pytest.mark.skipif(DATA is None, reason="needs ALEXNET_DIST_TEST_DATA")
def test_photographs_are_answered(page: Page) -> None:
    pictures = [
        next(Path(str(DATA), name).rglob("*.[jJ][pP]*[gG]")) for name in ("fruits10", "cat_dog", "imagenet_sample")
    ]
    for picture in pictures:
        assert "What speaks for" in give(page, picture, ".answer")
        clear(page)
    assert page.complaints == []


@pytest.mark.skipif(AXE is None, reason="needs ALEXNET_DIST_AXE, the path of axe-core's axe.min.js")
def test_axe_finds_nothing_serious(page: Page, folder: Path) -> None:
    give(page, folder / "pictures/0.png", ".answer")
    page.evaluate(Path(str(AXE)).read_text(encoding="utf-8") + ";0")
    found = "found.violations.map(one => [one.id, one.impact, one.nodes.map(node => node.html)])"
    for is_dark in (False, True):
        page.look(1000, 900, is_dark)
        violations = page.evaluate(f"axe.run().then(found => {found})")
        assert [one for one in violations if one[1] in ("serious", "critical")] == []


def test_ctrl_c_ends_it_and_leaves_nothing(server: Served) -> None:
    with httpx.stream("GET", f"{server.address}/gradio_api/heartbeat/somebody", timeout=60):  # an open page
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
    lines = server.talk.read_text().splitlines()
    assert lines[-2:] == [
        f"Serving at {server.address} (Ctrl-C ends it)",
        "Stopped. Run the same command again to continue.",
    ]
    assert [path for path in server.talk.parent.glob("tmp/*") if path.name.startswith("alexnet-serve-")] == []
