from __future__ import annotations

import pytest
from helpers.refusals import refused

from alexnet_dist.base.addresses import Address, is_address, parse_address
from alexnet_dist.base.errors import UsageError


@pytest.mark.parametrize(
    ("text", "scheme", "place", "path", "folder"),
    [
        ("s3://bucket", "s3", "bucket", "", ""),
        ("S3://bucket/a/b/", "s3", "bucket", "a/b", "a"),
        ("gs://bucket/a b#%41.tar", "gs", "bucket", "a b#%41.tar", ""),  # a bucket's names are written as they are
        ("https://host:8000/a%20b/x.tar", "https", "host:8000", "a b/x.tar", "a b"),
        ("s3://b/s/train-{000..009}.tar", "s3", "b", "s/train-{000..009}.tar", "s"),
    ],
)
def test_parts_of_an_address(text: str, scheme: str, place: str, path: str, folder: str) -> None:
    address = parse_address(text)
    assert address == Address(text, scheme, place, path)
    assert address.folder == folder
    assert is_address(text)


def test_data_set_of_the_hub() -> None:
    address = parse_address("hf://datasets/owner/na-me.1@refs%2Fpr/data/train")
    assert (address.place, address.revision, address.path) == ("owner/na-me.1", "refs%2Fpr", "data/train")
    assert parse_address("hf://datasets/o/n").revision == ""


@pytest.mark.parametrize("text", ["data/flowers", "/data/a:b", "C:/pictures", "", None])
def test_a_path_is_no_address(text: str | None) -> None:
    assert not is_address(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3a://b/x", "write s3://"),
        ("file:///x", "or a folder"),
        ("s3://", "BUCKET/FOLDER"),
        ("s3:///x", "BUCKET/FOLDER"),
        ("s3://b/a/../x", "without '..'"),
        ("s3://b//x/../y", "without '..'"),
        ("https://host", "name the file"),
        ("https://host/", "name the file"),
        ("hf://owner/name", "hf://datasets/OWNER/NAME"),
        ("hf://datasets/name", "hf://datasets/OWNER/NAME"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, words: str) -> None:
    assert words in refused(lambda: parse_address(text), UsageError)


@pytest.mark.parametrize(
    "text",
    ["https://me:secret@host/x.tar", "https://host/x.tar?X-Amz-Signature=secret", "s3://me:secret@bucket/x"],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    assert "secret" not in refused(lambda: parse_address(text), UsageError)
