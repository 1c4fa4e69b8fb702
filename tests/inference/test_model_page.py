"""README.md of a model folder: what the hub reads in it, what it says, and what it never says."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
import yaml
from helpers.cards import CARD
from helpers.refusals import refused
from helpers.tiny import tiny_config
from huggingface_hub import ModelCard as HubCard

import alexnet_dist
from alexnet_dist import AlexNet
from alexnet_dist.base.errors import InterruptedRunError, MachineError, UsageError
from alexnet_dist.cli.train import train
from alexnet_dist.inference.model_folder import read_card
from alexnet_dist.inference.model_page import (
    MARK,
    SetResult,
    _find_interval,
    _name_command,
    _name_sets,
    change_metadata,
    drop_page,
    format_page,
    has_results,
    is_own_page,
)
from alexnet_dist.models import build_model
from alexnet_dist.settings.reader import load_config

DIGEST = "d" * 64
RESULTS = (SetResult("val", 0.75, 1.0, 0.5, 8), SetResult("test", 0.5, 0.875, 1.25, 400))
COUNTS = {"train": 1200, "val": 8, "test": 400}
SECTIONS = ("Use", "Results", "Data", "Recipe", "Preprocessing", "Limits", "License")


def list_sections(page: str) -> list[str]:
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a test set."""
    folder = tmp_path_factory.mktemp("runs") / "fruits"
    train(make_settings(folder, epochs=2))
    return folder


def make_settings(folder: Path, epochs: int) -> Any:
    return tiny_config(folder, train__epochs=epochs, device="cpu", precision="fp32", data__val="val", data__test="test")


def read_page(folder: Path) -> str:
    return (folder / "model" / "README.md").read_text(encoding="utf-8")


def make_model() -> AlexNet:
    model = AlexNet(CARD)
    model.load_state_dict(build_model(CARD.spec, seed=1).state_dict())
    return model.eval()


def test_the_hub_reads_the_figures() -> None:
    data = HubCard(format_page(CARD, DIGEST, RESULTS, COUNTS)).data
    assert (data.library_name, data.pipeline_tag, data.metrics) == (
        "alexnet_dist",
        "image-classification",
        ["accuracy"],
    )
    found = [(row.dataset_split, row.metric_name, row.metric_value) for row in data.eval_results]
    assert found == [("validation", "Top-1 accuracy", 0.75), ("test", "Top-1 accuracy", 0.5)]  # top-5 of 3 classes is 1
    assert {(row.task_type, row.dataset_type) for row in data.eval_results} == {("image-classification", "imagefolder")}
    many = dataclasses.replace(CARD, spec=dataclasses.replace(CARD.spec, num_classes=10))
    assert len(HubCard(format_page(many, DIGEST, RESULTS)).data.eval_results) == 4


def test_people_read_the_figures() -> None:
    card = dataclasses.replace(CARD, source={**CARD.source, "run": "pets", "epoch": 3, "data_fingerprint": "f00d"})
    page = format_page(card, DIGEST, RESULTS, COUNTS)
    assert list_sections(page) == [name for name in SECTIONS if name != "Recipe"]  # its settings are not known
    for part in (
        "# pets\n",
        "tells 3 classes apart: `cat`, `größe`, `red fox`.",
        "step 12 (epoch 3)",
        "| validation | 8 | 75.00% | 40.93% to 92.85% | 100.00% | 0.5000 |",  # Wilson's, as scipy gives it
        "| test | 400 | 50.00% | 45.12% to 54.88% | 87.50% | 1.2500 |",
        "- training images: 1,200",
        "`f00d`",
        "resized to 70 x 72 pixels (height x width)",
        "The middle 64 x 64 pixels",
        "the mean 1, 2, 3 is subtracted, and the difference is divided by 4, 5, 6",
        f"`{DIGEST}`",
    ):
        assert part in page, part
    assert format_page(card, DIGEST, RESULTS, COUNTS) == page


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (6, 8), (399, 400), (400, 400)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    from scipy.stats import binomtest  # takes half a second

    wanted = binomtest(right, count).proportion_ci(method="wilson")
    assert _find_interval(right / count, count) == pytest.approx(tuple(wanted), abs=1e-12)


def test_what_is_not_known_is_not_said() -> None:
    page = format_page(dataclasses.replace(CARD, source={}), DIGEST)
    assert list_sections(page) == ["Use", "Preprocessing", "Limits", "License"]
    assert "More Information Needed" not in page
    assert "None" not in page
    assert not has_results(page)
    assert has_results(format_page(CARD, DIGEST, RESULTS[:1]))
    data = HubCard(page).data.to_dict()
    assert sorted(data) == ["library_name", "pipeline_tag", "tags"]


def test_names_stay_names() -> None:
    odd = ("# a `b`", "<script>", "x\n---\n", "\udce9", "a|b")
    card = dataclasses.replace(CARD, classes=odd, source={"run": "- x: [\n"})
    page = format_page(card, DIGEST, RESULTS)
    page.encode()  # UTF-8
    assert len(HubCard(page).data.eval_results) == 2
    assert "`` # a `b` ``" in page
    assert "`<script>`" in page
    assert page.count("\n---\n") == 1


def test_a_page_of_many_classes_names_some() -> None:
    names = tuple(f"class {number}" for number in range(1000))
    assert "`class 49` and 950 more" in format_page(dataclasses.replace(CARD, classes=names), DIGEST)


def test_metadata_of_the_hub_can_be_added() -> None:
    page = format_page(CARD, DIGEST, RESULTS, COUNTS)
    widget = [{"src": "https://example.org/a.jpg", "example_title": "a"}]
    changed = change_metadata(page, {"license": "cc-by-4.0", "widget": widget, "datasets": ["me/pets"]})
    data = HubCard(changed).data
    assert (data.license, data.widget, data.datasets) == ("cc-by-4.0", widget, ["me/pets"])
    assert len(data.eval_results) == 2
    assert "No license is stated" not in changed
    assert change_metadata(page, {}) == page
    model = make_model()
    assert "model_card_kwargs" in refused(lambda: model.generate_model_card(tags=7), UsageError)


def test_only_pages_of_ours_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    drop_page(tmp_path)
    page = format_page(CARD, DIGEST)
    for text, stays in ((page.replace(MARK, ""), True), (page, False)):
        path.write_text(text)
        drop_page(tmp_path)
        assert path.exists() is stays
        assert is_own_page(text) is not stays


@pytest.mark.heavy
def test_a_finished_run_has_a_page_with_its_figures(run: Path, tmp_path: Path) -> None:
    page = read_page(run)
    assert list_sections(page) == list(SECTIONS)
    assert [row.dataset_split for row in HubCard(page).data.eval_results] == ["validation", "test"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    config = load_config(str(recipe), {"output_dir": str(run)})
    wanted = make_settings(run, epochs=2)
    assert (config.model, config.optimizer, config.schedule) == (wanted.model, wanted.optimizer, wanted.schedule)
    assert (config.augment, config.seed, config.train) == (wanted.augment, wanted.seed, wanted.train)
    assert str(run.parent) not in page
    assert "    alexnet-dist train --config recipe.yaml\n" in page


WITH_ROOT = "alexnet-dist train --config recipe.yaml --data.root FOLDER"


@pytest.mark.parametrize(
    ("source", "counts", "command"),
    [
        ("folder", {"train": 90, "val": 10, "test": 40}, f"{WITH_ROOT} --data.train TRAIN --data.test TEST"),
        ("imagenet", None, f"{WITH_ROOT} --data.train TRAIN"),
        ("digits", {"train": 9, "val": 1}, "alexnet-dist train --config recipe.yaml"),
        ("cifar10", {"train": 9, "val": 1, "test": 1}, WITH_ROOT),
        ("None", None, "alexnet-dist train --config recipe.yaml"),
    ],
)
def test_the_command_fits_the_source(source: str, counts: dict[str, int] | None, command: str) -> None:
    assert _name_command(source, _name_sets(counts, is_held_out=True)) == command


def test_a_validation_set_of_its_own_is_named() -> None:
    counts = {"train": 9, "val": 3, "test": 0}
    assert _name_command("tar", _name_sets(counts, False)) == f"{WITH_ROOT} --data.train TRAIN --data.val VAL"


@pytest.mark.heavy
def test_a_run_that_was_stopped_ends_with_the_same_page(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fruits"
    calls = itertools.count()
    with pytest.raises(InterruptedRunError):
        alexnet_dist.train(make_settings(folder, epochs=2), stop=lambda: next(calls) == 5)
    assert not (folder / "model" / "README.md").exists()
    train(make_settings(folder, epochs=2))
    assert read_page(folder) == read_page(run)
    (folder / "model" / "README.md").write_text("mine")
    train(make_settings(folder, epochs=3))
    assert read_page(folder) == "mine"


@pytest.mark.heavy
def test_the_page_goes_with_the_weights_it_speaks_of(run: Path, tmp_path: Path) -> None:
    model = AlexNet.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == read_page(run)
    assert AlexNet.from_pretrained(tmp_path / "saved").generate_model_card().content == read_page(run)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "saved", model_card_kwargs={"license": "mit"})
    changed = (tmp_path / "saved" / "README.md").read_text()
    assert list_sections(changed) == [name for name in SECTIONS if name != "Results"]
    assert HubCard(changed).data.license == "mit"
    shutil.copytree(run / "model", tmp_path / "mixed")
    shutil.copy(tmp_path / "saved" / "README.md", tmp_path / "mixed" / "README.md")
    assert "Results" not in list_sections(str(AlexNet.from_pretrained(tmp_path / "mixed").generate_model_card()))
    own = (tmp_path / "mixed" / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert own
    AlexNet.from_pretrained(tmp_path / "mixed").save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "README.md").read_text() == "---\nlicense: mit\n---\nmine\n"


def test_a_push_without_results_is_refused_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []

    def upload(self: Any, *, folder_path: Path, **_: Any) -> str:
        pushed.append((folder_path / "README.md").read_text())
        return "done"

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda self, repo_id, **_: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}"),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    model = make_model()
    assert "without_results=True" in refused(lambda: model.push_to_hub("me/pets"), UsageError)
    assert pushed == []
    assert model.push_to_hub("me/pets", without_results=True) == "done"
    model._page = format_page(CARD, "x", RESULTS).replace(MARK, "")  # as its user has written it
    assert model.push_to_hub("me/pets", model_card_kwargs={"license": "mit"}) == "done"
    assert [has_results(page) for page in pushed] == [False, True]
    assert yaml.safe_load(pushed[1].split("---\n")[1])["license"] == "mit"
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'privat'.*did you mean 'private'"):
        model.push_to_hub("me/pets", privat=True)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (httpx.ConnectError("[Errno -2] Name or service not known\nmore"), "[Errno -2] Name or service not known;"),
        (OSError("no room"), "no room"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_the_hub_does_not_take_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, why: str) -> None:
    def fail(self: Any, **_: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    line = refused(lambda: make_model().push_to_hub("me/pets", without_results=True), MachineError)
    assert line.startswith("the hub does not take the model (me/pets): ")
    assert why in line
    assert "hf auth login" in line
    line = refused(lambda: make_model().push_to_hub("a/b/c", without_results=True), UsageError)
    assert line.startswith("no name of a model (a/b/c)")


def test_cards_of_older_versions_name_no_place() -> None:
    settings = {"seed": 3, "data": {"root": "/home/canary"}, "tracking": {"entity": "canary"}}
    source = {"settings": settings, "pretrained": {"weights": "/home/canary/net.pt"}}
    page = format_page(dataclasses.replace(CARD, source=source), DIGEST)
    assert "canary" not in page
    assert "`net.pt`" in page


@pytest.mark.heavy
def test_a_model_saved_in_the_middle_has_a_page_without_results(run: Path) -> None:
    card = read_card(run / "model")
    assert list_sections(format_page(card, DIGEST)) == [name for name in SECTIONS if name != "Results"]
