"""The file of API keys: the command that makes it, what is refused, and what a running server makes of changes."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import httpx
import pytest
from server_process import ROOT, fake_artifacts, fake_server, server_process

from service.errors import UnauthorizedError
from service.keys import main
from service.security import keyring as keyring_module
from service.security.callers import Caller
from service.security.keyring import Keyring
from service.security.keys_file import Key, KeysFileError, digest, new_token, read_keys, write_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def made(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Make a key by the command; return its token."""
    assert main(["create", "--file", str(file), *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_keys_are_made_listed_and_revoked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token is printed once; the file, of its user alone, has its digest."""
    assert re.fullmatch(r"laplora_[A-Za-z0-9_-]{43}", new_token())
    for name, scopes in (("", "predict"), ("a\n", "predict"), ("a", "predict,everything"), ("a", "")):
        assert main(["create", "--file", str(file), "--id", name, "--scopes", scopes]) == 2
        assert capsys.readouterr().err.startswith("python -m service.keys: --")
        assert not file.exists()
    tokens = [
        made(file, capsys, "--id", "a", "--scopes", "predict,evaluate", "--expires", "2027-01-01"),
        made(file, capsys, "--id", "a", "--scopes", "predict"),
        made(file, capsys, "--id", "b", "--scopes", "admin", "--comment", "the deploy job"),
    ]
    first, second, third = read_keys(file)
    assert first == key("a", tokens[0], scopes=("predict", "evaluate"), expires=date(2027, 1, 1))
    assert (third.id, third.scopes, third.expires, third.comment) == ("b", ("admin",), None, "the deploy job")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {p.name for p in file.parent.iterdir()} == {".keys.json.lock", "keys.json"}
    assert main(["list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    prints = [digest(token)[:12] for token in tokens]
    assert [tuple(line.split()[:2]) for line in listed.splitlines()] == list(zip("aab", prints, strict=True))
    assert not any(token in listed + file.read_text() for token in tokens)

    revoke = ["revoke", "--file", str(file), "--id", "a"]
    assert main([*revoke, "--fingerprint", prints[0]]) == 0
    assert list(read_keys(file)) == [second, third]
    assert main(revoke) == 0
    assert list(read_keys(file)) == [third]
    assert main(revoke) == 2
    assert "no such key" in capsys.readouterr().err


def test_commands_at_the_same_time_lose_no_key(file: Path) -> None:
    def create(number: int) -> None:
        command = [sys.executable, "-m", "service.keys", "create", "--file", str(file), "--scopes", "predict"]
        subprocess.run([*command, "--id", f"k{number}"], cwd=ROOT, check=True, capture_output=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(8)))
    assert {key.id for key in read_keys(file)} == {f"k{i}" for i in range(8)}


def key(name: str, token: str, *, scopes: tuple[str, ...] = ("predict",), expires: date | None = None) -> Key:
    return Key.model_validate({"id": name, "sha256": digest(token), "scopes": scopes, "expires": expires})


GOOD = {"id": "a", "sha256": "0" * 64, "scopes": ["predict"]}
#: Text of a file that is no file of keys, and what its refusal says.
BROKEN = {
    "empty": ("", "it is empty"),
    "no JSON": ('{"keys": [', "Invalid JSON"),
    "an unknown field": (json.dumps({"keys": [], "more": 1}), "more: "),
    "an unknown scope": (json.dumps({"keys": [{**GOOD, "scopes": ["root"]}]}), "keys.0.scopes.0: "),
    "a token for a digest": (json.dumps({"keys": [{**GOOD, "sha256": "laplora_SECRET"}]}), "keys.0.sha256: "),
    "an id for a log's line": (json.dumps({"keys": [{**GOOD, "id": "a\nb"}]}), "keys.0.id: "),
    "one digest twice": (json.dumps({"keys": [GOOD, {**GOOD, "id": "b"}]}), "the same sha256"),
}


def test_a_broken_file_is_refused_by_name_and_place(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match="No such file"):
        read_keys(file)
    with pytest.raises(KeysFileError, match="directory"):
        read_keys(tmp_path)
    for what, (text, said) in BROKEN.items():
        file.write_text(text)
        with pytest.raises(KeysFileError) as refused:
            read_keys(file)
        assert str(file) in str(refused.value)
        assert said in str(refused.value), what
        assert "SECRET" not in str(refused.value)
    write_keys(file, [key("a", "t")])
    file.chmod(0o602)
    with pytest.raises(KeysFileError, match="everyone can write it"):
        read_keys(file)


def test_a_file_behind_a_link_is_written_where_it_is(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file)
    write_keys(link, [key("b", "u")])
    assert (link.is_symlink(), file.is_symlink()) == (True, False)
    assert [k.id for k in read_keys(file)] == ["b"]


def test_a_token_names_its_holder_until_it_expires_and_nothing_else_does(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = date(2026, 12, 31)
    more = key("b", "three", scopes=("evaluate", "admin"))
    write_keys(file, [key("a", "one"), key("a", "two", expires=last + timedelta(days=1)), more])
    keyring = Keyring(file)
    monkeypatch.setattr(keyring_module, "today", lambda: last)
    assert keyring.caller("one") == keyring.caller("two") == Caller("a", frozenset({"predict"}))
    assert keyring.caller("three") == Caller("b", frozenset({"evaluate", "admin"}))
    for wrong in ("", "On", "one ", "four", digest("one"), "ü\udfff"):
        with pytest.raises(UnauthorizedError):
            keyring.caller(wrong)
    monkeypatch.setattr(keyring_module, "today", lambda: last + timedelta(days=1))
    with pytest.raises(UnauthorizedError, match="expired on 2027-01-01"):
        keyring.caller("two")


def test_every_key_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the keys it is, or none: the same comparisons, all by compare_digest."""
    write_keys(file, [key(name, name) for name in "abcd"])
    keyring, compared = Keyring(file), list[str]()

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr(keyring_module.hmac, "compare_digest", compare)
    for token in "abd":
        keyring.caller(token)
    with pytest.raises(UnauthorizedError):
        keyring.caller("x")
    assert compared == 4 * [digest(name) for name in "abcd"]


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda file: file.chmod(0o666), lambda file: file.write_text("")],
    ids=["gone", "writable by everyone", "empty"],
)
def test_a_file_that_goes_bad_keeps_the_last_good_keys(
    spoil: Callable[[Path], object], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_keys(file, [key("a", "t")])
    keyring = Keyring(file)
    spoil(file)
    for _ in range(3):
        keyring.look()
    assert keyring.caller("t").name == "a"
    (record,) = caplog.records
    assert (record.levelname, record.event) == ("ERROR", "keys_refused")  # type: ignore[attr-defined]
    write_keys(file, [key("b", "u")])
    keyring.look()
    assert keyring.caller("u").name == "b"
    # The last key can be revoked while it runs, and no start goes without.
    assert main(["revoke", "--file", str(file), "--id", "b"]) == 0
    keyring.look()
    for token in "tu":
        with pytest.raises(UnauthorizedError):
            keyring.caller(token)
    with pytest.raises(KeysFileError, match="holds no key"):
        Keyring(file)


def predicted(client: httpx.Client, token: str) -> int:
    time.sleep(0.02)
    body = {"inputs": [{"text": "a"}]}
    return client.post("/predict", json=body, headers={"authorization": f"Bearer {token}"}).status_code


def test_keys_are_changed_while_the_server_runs(tmp_path: Path, file: Path) -> None:
    first, second = new_token(), new_token()
    write_keys(file, [key("a", first)])
    command = fake_server(fake_artifacts(tmp_path), "--auth", "keys", "--keys", str(file))
    with command as process, process.client() as client:
        assert predicted(client, first) == 200
        assert predicted(client, second) == 401
        write_keys(file, [*read_keys(file), key("a", second)])
        while predicted(client, second) != 200:
            assert predicted(client, first) == 200
        write_keys(file, [key("a", second)])
        while predicted(client, first) != 401:
            assert predicted(client, second) == 200
        file.write_text("not keys")
        process.event("keys_refused")
        assert predicted(client, second) == 200
        process.popen.terminate()
        assert process.left() == 0
    assert not any(token in process.log or digest(token) in process.log for token in (first, second))
    asked = [json.loads(line) for line in process.lines if '"POST"' in line]
    assert {line.get("caller") for line in asked if line["status"] == 200} == {"a"}
    assert {line.get("caller") for line in asked if line["status"] == 401} == {"127.0.0.1"}
    assert {line["route"] for line in asked} == {"/predict"}


def test_without_keys_it_starts_only_where_they_are_switched_off(file: Path, tmp_path: Path) -> None:
    file.write_text("{")
    root = fake_artifacts(tmp_path)
    # The real server: it refuses before it reads an artifact.
    command = ["-m", "service", "--artifact", "fake", "--artifacts-root", str(root), "--auth", "keys"]
    for flags, said in (
        (["--keys", str(file)], [str(file), '"keys_refused"']),
        ([], ["--keys FILE (LAPLORA_KEYS)", "--auth off (LAPLORA_AUTH=off)"]),
    ):
        with server_process([*command, *flags]) as process:
            assert process.left() == 2
        assert [part for part in said if part not in process.log] == []
    with fake_server(root, "--auth", "off", "--host", "0.0.0.0") as process, process.client() as client:
        assert process.event("auth_off")["level"] == "warning"
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200
