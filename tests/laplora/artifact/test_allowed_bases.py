"""Which base models a fetched artifact may name: what cannot surprise anybody, and what somebody allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from laplora.artifact.allowed_bases import check_model_allowed
from laplora.errors import ConfigError
from laplora.remote.address import parse_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "#sha256=" + "0" * 64


def check(address: str, model: str, *allowed: str, revision: str | None = None) -> None:
    check_model_allowed(parse_address(address), model, revision, allowed)


@pytest.mark.parametrize(
    ("address", "model"),
    [
        ("https://host/a", "smollm2-135m-instruct"),
        ("s3://models/team/a", "s3://models/base"),
        ("https://host/a?key=1", "https://host/base"),
        ("hf://owner/name/a", "hf://owner/name/base"),
        ("s3://models/a", f"hf://meta/llama@{COMMIT}"),
        *((f"s3://models/a{DIGEST}", model) for model in ("meta/llama", "gpt2", "hf://meta/llama@main/sub")),
        (f"hf://owner/name@{COMMIT}", "meta/llama"),
    ],
)
def test_what_any_may_have(address: str, model: str) -> None:
    check(address, model)
    check("https://host/a", "meta/llama", revision=COMMIT)


@pytest.mark.parametrize(
    ("address", "model", "says"),
    [
        *((f"s3://m/a{DIGEST}", model, "a folder of this machine") for model in ("/srv/llama", "../llama", "~/a", "")),
        (f"s3://models/a{DIGEST}", "s3://private/base", "another store"),
        (f"s3://models/a{DIGEST}", "gs://models/base", "another store"),
        ("https://host/a", "https://10.0.0.1/base", "another store"),
        ("https://host/a", "https://host:8443/base", "another store"),
        ("https://host/a", "meta/llama", "at no commit"),
        ("hf://owner/name@main", "meta/llama", "at no commit"),
        ("hf://owner/name", "hf://owner/other@main", "at no commit"),
        ("https://host/a", "file:///etc", "no address"),
        pytest.param("https://host/a?key=hidden", "/" + "x" * 100_000, "a folder of this machine", id="long"),
    ],
)
def test_what_none_may_have(address: str, model: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        check(address, model)
    assert len(str(refused.value)) < 500
    assert "hidden" not in str(refused.value)
    if "no address" not in says:
        check(address, model, "*")


def test_a_folder_that_is_named_as_a_repository_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an entry allows a repository of the hub of that name."""
    (tmp_path / "meta" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for allowed in ((), ("hf://meta/*",), ("hf://meta/llama",), ("hf://*",)):
        with pytest.raises(ConfigError, match="a folder of this machine"):
            check("https://host/a", "meta/llama", *allowed, revision=COMMIT)
    check("https://host/a", "meta/llama", "meta/llama")


@pytest.mark.parametrize(
    ("entry", "model", "is_allowed"),
    [
        ("meta/llama", "meta/llama", True),
        ("hf://meta/llama", "meta/llama", True),
        ("hf://meta/llama@v1", "hf://meta/llama@v2", True),
        ("meta/*", "meta/llama", True),
        ("meta/*", "metal/llama", False),
        ("/srv/models/*", "/srv/models/llama", True),
        ("/srv/models/*", "/srv/models/../keys", False),
        ("/srv/models", "/srv/models/llama", False),
        ("s3://models/*", "s3://models/llama", True),
        ("s3://models/*", "s3://models-of-others/llama", False),
        ("meta*", "meta/llama", False),
        ("hf://*", "meta/llama", True),
        ("hf://*", "/etc/keys", False),
        ("/*", "/srv/models/llama", True),
        ("/*", "meta/llama", False),
        ("", "", False),
    ],
)
def test_what_an_entry_allows(entry: str, model: str, is_allowed: bool) -> None:
    if is_allowed:
        check("https://host/a", model, "other", entry)
    else:
        with pytest.raises(ConfigError, match="--allowed-bases"):
            check("https://host/a", model, *filter(None, [entry]))
