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
from helpers.browser import SCHEMES, find, list_serious, needs_browser, new_browser, set_window, wait_for
from helpers.models import write_model_and_pictures
from helpers.ports import taken_port
from helpers.serving import Served, served

from alexnet_dist.cli.main import run

pytest.importorskip("gradio", reason="needs the extra demo")

import httpx

pytestmark = pytest.mark.slow

DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with new_browser() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, server: Served) -> Any:
    """The page as it is before anything was done."""
    set_window(browser)
    browser.get(server.address)
    wait_for(browser, READY, seconds=60)
    return browser


READY = "return document.querySelector('input[type=file]') !== null"


def give(page: Any, picture: Path, sign: str) -> str:
    """The text of the page after a picture was chosen, and a sign of its answer has come."""
    find(page, "input[type=file]").send_keys(str(picture))
    wait_for(page, "return document.querySelector(arguments[0]) !== null", sign, seconds=60)
    return str(page.execute_script("return document.body.innerText"))


def take_away(page: Any) -> None:
    """Take the picture away with the button for that; the answer goes with it."""
    wait_for(
        page,
        "const found = document.querySelector('[aria-label=\"Remove Image\"]'); found?.click(); return found !== null",
    )
    wait_for(page, "return document.querySelector('.answer, .refusal') === null", seconds=60)
    wait_for(page, READY)


def list_complaints(page: Any) -> list[str]:
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
def test_a_browser_sees_the_answer_and_asks_nobody_else(
    server: Served, page: Any, folder: Path, tmp_path: Path
) -> None:
    text = give(page, folder / "pictures/0.png", ".answer")
    assert "<b>cat</b>" in text  # shown as it is written
    assert page.find_elements("css selector", "b") == []
    assert all(word in text for word in ("dog", "output 2", "What speaks for", "Filter "))
    drawn = "return [...document.querySelectorAll('.answer img')].map(one => one.naturalWidth > 0 && one.alt !== '')"
    assert page.execute_script(drawn) == [True] * (3 + 2 * 8)
    take_away(page)
    (tmp_path / "a.png").write_text("no picture")
    assert "This file gets no answer: not an image" in give(page, tmp_path / "a.png", ".refusal[role=alert]")
    take_away(page)
    assert "What speaks for" in give(page, folder / "pictures/1.png", ".answer")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {urlsplit(one).netloc for one in asked if not one.startswith("data:")} == {urlsplit(server.address).netloc}
    assert list_complaints(page) == []


@needs_browser
@pytest.mark.parametrize("scheme", SCHEMES)
def test_light_dark_and_narrow_pages_can_be_read_by_all(page: Any, folder: Path, scheme: str) -> None:
    give(page, folder / "pictures/0.png", ".answer")
    for width in (360, 1200):
        set_window(page, scheme, width)
        color = wait_for(page, "return getComputedStyle(document.body).backgroundColor")
        assert (color == "rgb(255, 255, 255)") is (scheme == "light")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width  # all fits into the window
        assert list_serious(page) == []


@needs_browser
@pytest.mark.skipif(DATA is None, reason="needs ALEXNET_DIST_TEST_DATA")
@pytest.mark.parametrize("name", ["fruits10", "cat_dog", "imagenet_sample"])
def test_photographs_are_answered(page: Any, name: str) -> None:
    picture = next(path for path in Path(str(DATA), name).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    assert "What speaks for" in give(page, picture, ".answer")
    assert list_complaints(page) == []


def test_ctrl_c_ends_it_and_leaves_nothing(server: Served) -> None:
    with httpx.stream("GET", f"{server.address}/gradio_api/heartbeat/somebody", timeout=60):  # an open page
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
    lines = server.talk.read_text().splitlines()
    assert lines[-1] == "Stopped. Run the same command again to continue."
    assert [line for line in lines if "Traceback" in line or "ERROR" in line] == []
    assert [path for path in server.talk.parent.glob("tmp/*") if path.name.startswith("alexnet-serve-")] == []
