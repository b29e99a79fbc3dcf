"""Addresses: what is one, what pins it, and that no error or text of one shows its query."""

from __future__ import annotations

from pathlib import Path

import pytest

from laplora.errors import ConfigError
from laplora.remote.address import is_address, is_plain, parse_address

PIN = "a" * 64


@pytest.mark.parametrize(
    "text", ["s3://bucket/a/b", "s3://bucket", "gs://bucket/a", "https://host:8443/a", "http://127.0.0.1:9/a"]
)
def test_an_address_is_a_folder_and_a_pin(text: str) -> None:
    plain, pinned = parse_address(text), parse_address(f"{text}/#sha256={PIN}")
    assert str(plain) == str(pinned) == text
    assert (plain.sha256, pinned.sha256) == (None, PIN)
    assert is_address(text)
    assert not is_address(Path(text))


@pytest.mark.parametrize("text", ["artifacts/sst2", "/a/b", "sst2", "C:\\a", "s3:/bucket/a"])
def test_a_folder_is_none(text: str) -> None:
    assert not is_address(text)


def test_the_hub_has_a_revision_and_a_folder() -> None:
    address = parse_address(f"hf://owner/name@v1.0/sub/folder#sha256={PIN}")
    assert (address.repository, address.revision, address.folder) == ("owner/name", "v1.0", "sub/folder")
    assert str(address) == "hf://owner/name@v1.0/sub/folder"
    assert str(address.at("c" * 40)) == f"hf://owner/name@{'c' * 40}/sub/folder"
    assert parse_address("hf://owner/name").revision is None
    assert parse_address("hf://owner/name@refs%2Fpr%2F1").revision == "refs/pr/1"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ftp://host/a",
            "file:///etc/passwd",
            "s3://",
            "s3://bucket:9000/a",
            "s3://bucket/../other",
            "s3://bucket/a//b",
        ),
        *("s3://bucket/.hidden", "s3://bucket/%2e%2e/other", "s3://bucket/a?versionId=1", "s3://bucket/a#sha256=abc"),
        *(f"s3://bucket/a#sha512={PIN}", f"s3://bucket/a#sha256={PIN.upper()}"),
        *("hf://name", "hf://owner/name@", "hf://owner/name@a/../b", "hf://datasets/owner/name"),
        *("hf://owner/name?token=hidden", "http://host/a", "http://169.254.169.254/latest", "https:///a"),
        *("http://127.0.0.1.example.com/a", "https://host/a\n", "https://host/a b", "https://host\\@other/a"),
        *("https://me:hidden@host/a", "https://host:port/a", "https://[::1/a"),
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_address(text)
    assert "hidden" not in str(refused.value)


def test_a_query_is_kept_and_never_shown() -> None:
    address = parse_address("https://host/a?X-Amz-Signature=hidden")
    assert address.query == "X-Amz-Signature=hidden"
    assert "hidden" not in f"{address} {address!r}"
    assert address.is_private


@pytest.mark.parametrize("name", ["manifest.json", "members/1/adapter/adapter_config.json", "report/Größe.html"])
def test_a_plain_path_stays_in_its_folder(name: str) -> None:
    assert is_plain(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".a", "a/.b", "a.", "a ", "a/b ./c"),
        *("a\\b", "C:a", "a\0b", "a\nb", "a?b", "a*", "a" * 401, "/".join("abcdefghi")),
    ],
)
def test_other_paths_do_not(name: str) -> None:
    assert not is_plain(name)
