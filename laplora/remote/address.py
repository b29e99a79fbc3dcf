"""Addresses of what lies elsewhere: ``hf://``, ``s3://``, ``gs://`` and ``https://``, and the digest that pins one."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from laplora.errors import ConfigError

_FORMS = "hf://OWNER/NAME[@REVISION], s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB = re.compile(r"hf://([\w][\w.-]*/[\w][\w.-]*)(?:@([^@/?#]+))?(?:/(.*))?", re.ASCII)
_PIN = re.compile(r"sha256=([0-9a-f]{64})")
#: Longest path of a file below an address, in characters, and its most folders.
_MOST_CHARACTERS, _MOST_DEPTH = 400, 8


@dataclass(frozen=True)
class Address:
    """A folder that lies elsewhere.

    Attributes:
        url: without what pins it, and without a query: it may be shown.
        query: of an ``https://`` address. It goes with every request and may be a signature: it is shown nowhere.
        repository, revision, folder: of the hub: ``owner/name``, None for the default branch, and the folder in it.
        sha256: digest, in hexadecimal, that the content must have; None where any will do.
    """

    url: str
    query: str = field(default="", repr=False)
    repository: str = ""
    revision: str | None = None
    folder: str = ""
    sha256: str | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """``hf``, ``s3``, ``gs``, ``https``, or on this machine ``http``."""
        return self.url.partition(":")[0]

    def at(self, version: str) -> Address:
        """Return the address of the same folder of the hub at a commit."""
        folder = f"/{self.folder}" if self.folder else ""
        return replace(self, url=f"hf://{self.repository}@{version}{folder}", revision=version)

    @property
    def is_private(self) -> bool:
        """Whether it has a part that must be recorded nowhere."""
        return bool(self.query)


def is_address(where: str | Path) -> bool:
    """Return whether a text has the form of an address; a ``Path`` never has."""
    return isinstance(where, str) and _SCHEME.match(where) is not None


def parse_address(text: str) -> Address:
    """Return the address that a text is, such as ``s3://models/sst2#sha256=...``.

    Raises:
        ConfigError: it is none. The message repeats nothing of it but its scheme.
    """
    scheme = match[1].lower() if (match := _SCHEME.match(text)) else ""
    if not text.isprintable() or " " in text or "\\" in text:
        raise ConfigError(f"an address has no spaces, backslashes or control characters: expected {_FORMS}")
    if scheme not in ("hf", "s3", "gs", "https", "http"):
        what = f"{scheme}:// is no address that can be read" if scheme else "this is a path and no address"
        raise ConfigError(f"{what}: expected {_FORMS}")
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise ConfigError(f"the {scheme}:// address cannot be read: expected {_FORMS}") from None
    pin = _PIN.fullmatch(parts.fragment)
    if parts.fragment and pin is None:
        raise ConfigError("an address ends after '#' with sha256= and the digest of 64 hexadecimal digits")
    if parts.query and scheme not in ("https", "http"):
        raise ConfigError(f"a {scheme}:// address has no '?': keys and tokens come from the environment")
    sha256 = pin[1] if pin else None
    if scheme == "hf":
        return _hub_address(text.partition("#")[0], sha256)
    _check_host(scheme, parts)
    path = parts.path.rstrip("/")
    if path and not is_plain(unquote(path.removeprefix("/"))):
        raise ConfigError(f"the path of the {scheme}:// address has empty or dotted parts: expected {_FORMS}")
    return Address(f"{scheme}://{parts.netloc}{path}", parts.query, sha256=sha256)


def is_plain(name: str) -> bool:
    """Return whether a path stays in the folder that it is joined to, on every system, and is nothing but a file's.

    No empty or dotted part, nothing absolute, no backslash, colon or control character, and no hidden file.
    """
    parts = name.split("/")
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(name) <= _MOST_CHARACTERS
        and len(parts) <= _MOST_DEPTH
        and all(part and not part.startswith(".") and not part.endswith((".", " ")) for part in parts)
    )


def _hub_address(text: str, sha256: str | None) -> Address:
    form = _HUB.fullmatch(text.rstrip("/"))
    folder = (form[3] or "") if form else ""
    if form is None or (folder and not is_plain(folder)) or form[1].split("/")[0] in ("datasets", "spaces", "buckets"):
        raise ConfigError("expected hf://OWNER/NAME[@REVISION][/FOLDER], a repository of models")
    revision = unquote(form[2]) if form[2] else None
    if revision is not None and not is_plain(revision):
        raise ConfigError("the revision of the hf:// address is no name of a branch or tag, nor a commit's hash")
    at = f"@{form[2]}" if form[2] else ""
    url = f"hf://{form[1]}{at}{f'/{folder}' if folder else ''}"
    return Address(url, repository=form[1], revision=revision, folder=folder, sha256=sha256)


def _check_host(scheme: str, parts: SplitResult) -> None:
    if not parts.hostname:
        raise ConfigError(f"the {scheme}:// address names no {'host' if scheme.startswith('http') else 'bucket'}")
    if "@" in parts.netloc:
        raise ConfigError(f"the {scheme}:// address has a name or password in it: leave it out")
    if scheme in ("s3", "gs") and ":" in parts.netloc:
        raise ConfigError(f"after {scheme}:// comes a bucket; its endpoint comes from the environment")
    if scheme == "http" and not is_this_machine(parts.hostname):
        raise ConfigError("http:// is for 127.0.0.1 alone, as nobody can trust what comes over it: use https://")


def is_this_machine(host: str) -> bool:
    """Return whether a host can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
