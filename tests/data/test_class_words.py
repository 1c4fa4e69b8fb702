"""ImageNet's classes in words: the right ones for known ids, and other names stay as they are."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

from alexnet_dist.data.class_words import IDS, describe_class, find_words

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def test_there_are_a_thousand_sorted_ids_with_words_of_their_own() -> None:
    ids = (resources.files("alexnet_dist.data") / IDS).read_text().splitlines()
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert len({find_words(name) for name in ids} - {None}) == 1000
    assert (find_words(ids[0]), find_words(ids[-1])) == ("tench", "toilet tissue")


def test_known_classes() -> None:
    assert {name: find_words(name) for name in IMAGENETTE} == IMAGENETTE
    assert describe_class("n02102040") == "English springer (n02102040)"


@pytest.mark.parametrize("name", ["dog", "", "n00000000", "n0210204", "N02102040", "n02102040 "])
def test_any_other_name_stays(name: str) -> None:
    assert find_words(name) is None
    assert describe_class(name) == name


@pytest.mark.heavy
def test_other_classes_wait_for_nothing_heavy() -> None:
    code = (
        "import sys; from alexnet_dist.data.class_words import describe_class\n"
        "describe_class('dog')\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
