"""Base models and adapters that lie elsewhere: their known files, fetched into the cache, and no other.

A checkpoint has no manifest. Only names that transformers and PEFT give are requested: JSON, a tokenizer's files and
safetensors, never a pickled file or code. Which one it is, its hash says: an artifact records that of its base, and is
not loaded on another one.

A copy in the cache has a note of its address, the hub's commit, and its files with their sizes, so that one that is
there is loaded while its store is away. The note is of the last state that was fetched from an address, or of one that
is pinned: what whoever loads it must find in it, such as the weights' hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from laplora.errors import ConfigError, DownloadError, ModelError, StoreUnreachableError
from laplora.files.atomic import write_json
from laplora.models.hashes import INDEX, WHOLE, indexed_shards
from laplora.models.wheels import Progress, cache_root, file_lock, report
from laplora.remote.address import Address, parse_address
from laplora.remote.hub import HubStore, is_commit, is_repository
from laplora.remote.stores import Store, open_store, save

#: Most bytes of a checkpoint unless the caller says otherwise, and of a file of it that is read before the others.
MOST_BYTES, _MOST_INDEX_BYTES = 256 * 2**30, 16 * 2**20
#: Most files of a checkpoint.
_MOST_FILES = 4096
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
#: Files beside a base's weights: the first it must have, the others are its tokenizer's, as it has them.
_BASE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
)

#: The kinds of checkpoints: a base model, its tokenizer alone, or an adapter.
Kind = Literal["base", "tokenizer", "adapter"]
#: By name: bytes, and what changes with the content.
States = dict[str, tuple[int, str]]


def fetch_checkpoint(
    where: str,
    kind: Kind,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    most_bytes: int = MOST_BYTES,
    pin: str | None = None,
) -> Path:
    """Return the folder in the cache of what lies at an address: a base model, its tokenizer, or an adapter.

    It is fetched where it is not there in its present state, whole or not at all; a stopped call goes on with the files
    that it had. Several processes may ask at once. Files of the hub are in huggingface_hub's own cache.

    A copy that is pinned, by a commit's whole hash or by ``pin``, is taken without asking anybody. If the store does
    not answer, the last copy of the address is used, with a warning.

    Args:
        cache: as of ``cache_root``; progress: told what is done, and of a warning.
        most_bytes: of its files together.
        pin: of ``keep_copy``: what must be in it.

    Raises:
        ConfigError: an address that is none, or one with a part that must not be recorded, as this one will be.
        ModelError: no such files there, or weights that are no safetensors.
        DownloadError: they cannot be fetched, are too large, or changed meanwhile.
    """
    address = parse_address(where)
    if address.is_private or address.scheme == "http":
        raise ConfigError(
            f"the address of {_called(kind)} is recorded with what is made of it, so it has no query, and is no http://"
        )
    if address.sha256:
        raise ConfigError(f"#sha256= pins an artifact; {_called(kind)} on the hub is pinned by its commit, @REVISION")
    pins = [pin] if pin is not None else []
    for one in [*pins, *([None] if is_commit(address.revision) else [])]:
        if (kept := _kept_copy(where, kind, cache=cache, pin=one)) is not None:
            return kept.folder
    try:
        if address.scheme == "hf":
            folder, commit = _from_hub(address, kind, progress, most_bytes)
        else:
            folder, commit = _from_store(address, kind, _root(cache), progress, most_bytes), None
    except StoreUnreachableError as error:
        if (kept := _kept_copy(where, kind, cache=cache)) is None:
            raise
        at = f" at commit {kept.commit}" if kept.commit else ""
        report(f"warning: {error}: the copy in the cache of {kept.noted}{at} is used, which may be older", progress)
        return kept.folder
    keep_copy(where, kind, folder, cache=cache, commit=commit)
    return folder


@dataclass(frozen=True)
class _Copy:
    """A whole copy in the cache: its folder, when it was noted, UTC, and the hub's commit, None of another store."""

    folder: Path
    noted: str
    commit: str | None


def keep_copy(
    address: str,
    kind: Kind,
    folder: Path,
    *,
    cache: Path | None = None,
    pin: str | None = None,
    commit: str | None = None,
) -> None:
    """Note what was fetched from an address; a cache that cannot be written keeps no note.

    Args:
        pin: what is known to be in it; None: it is the last state of the address.
    """
    root = _root(cache)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    where = folder.relative_to(root) if folder.is_relative_to(root) else folder.absolute()
    with suppress(OSError):
        write_json(
            _note(root, address, kind, pin),
            {"from": address, "kind": kind, "pin": pin, "commit": commit, "folder": str(where), "files": files},
        )


def _kept_copy(address: str, kind: Kind, *, cache: Path | None = None, pin: str | None = None) -> _Copy | None:
    """Return the copy of an address with this pin; None where there is none, or it is not whole any more."""
    root = _root(cache)
    note = _note(root, address, kind, pin)
    try:
        fields = json.loads(note.read_bytes())
        folder = root / fields["folder"]
        whole = all((folder / name).stat().st_size == size for name, size in fields["files"].items())
        noted = datetime.fromtimestamp(note.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return _Copy(folder, noted, fields["commit"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _root(cache: Path | None) -> Path:
    return cache_root(cache) / "checkpoints"


def _note(root: Path, address: str, kind: Kind, pin: str | None) -> Path:
    key = _digest(json.dumps([address, kind, pin]))
    return root / "copies" / f"{key}.json"


def _from_store(address: Address, kind: Kind, root: Path, progress: Progress | None, most_bytes: int) -> Path:
    store = open_store(address)
    with file_lock(root / f"{_digest(str(address))}.lock", progress=progress):
        files = _known_files(store, address, kind)
        if kind == "base":
            files |= _weights(store, address, root)
        _check_size(str(address), [size for size, _ in files.values()], most_bytes)
        place = root / _digest(json.dumps([str(address), kind, sorted(files.items())]))
        if not place.is_dir():
            _fetch(store, address, files, place, progress)
        return place


def _from_hub(address: Address, kind: Kind, progress: Progress | None, most_bytes: int) -> tuple[Path, str | None]:
    store = HubStore(address, ask=False)
    report(f"fetching {address} at commit {store.version}", progress)
    weights = (WHOLE, INDEX, "model-*.safetensors") if kind == "base" else ()
    wanted = ADAPTER_FILES if kind == "adapter" else (*_BASE_FILES, *weights)
    with suppress(StoreUnreachableError, FileNotFoundError):  # then nothing is fetched: it is in the hub's cache or not
        _check_size(str(address), store.sizes(wanted).values(), most_bytes)
    folder = store.snapshot(wanted)
    for name in ADAPTER_FILES if kind == "adapter" else _BASE_FILES[:1]:
        if not (folder / name).is_file():
            raise ModelError(f"there is no {name} at {address}, as save_pretrained writes it")
    return folder, store.version


def check_hub_size(model: str, revision: str | None, *, most_bytes: int = MOST_BYTES) -> None:
    """Check, before transformers fetches it, that a model of the hub is not too large; nothing for a folder.

    Raises:
        DownloadError: it is. A hub that does not answer or refuses is left to whoever fetches.
    """
    if Path(model).is_dir() or not is_repository(model):
        return
    try:
        at = f"@{quote(revision, safe='')}" if revision else ""
        store = HubStore(parse_address(f"hf://{model}{at}"), ask=False)
        sizes = store.sizes((*_BASE_FILES, "*.json", "*.safetensors"))
    except (DownloadError, ConfigError, FileNotFoundError):
        return
    whole = [size for name, size in sizes.items() if "/" not in name]  # those in folders are of other formats
    _check_size(f"model {model!r}", whole, most_bytes)


def _check_size(what: str, sizes: Collection[int], most_bytes: int) -> None:
    if len(sizes) > _MOST_FILES:
        raise DownloadError(f"{what} has {len(sizes)} files, more than {_MOST_FILES}")
    if (total := sum(sizes)) > most_bytes:
        raise DownloadError(
            f"{what} has {total} bytes, more than {most_bytes}: --max-base-bytes of a server (LAPLORA_MAX_BASE_BYTES, "
            "in Python most_base_bytes) allows more"
        )


def _called(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a base model"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known_files(store: Store, address: Address, kind: Kind) -> States:
    names, what, by = (ADAPTER_FILES, "adapter", "PEFT's ") if kind == "adapter" else (_BASE_FILES, "base model", "")
    states = {name: state for name in names if (state := store.state(name)) is not None}
    for name in names if kind == "adapter" else names[:1]:
        if name not in states:
            raise ModelError(f"no {what} at {address}: there is no {name}, as {by}save_pretrained writes it")
    return states


def _weights(store: Store, address: Address, root: Path) -> States:
    if (whole := store.state(WHOLE)) is not None:
        return {WHOLE: whole}
    index = store.state(INDEX)
    if index is None or index[0] > _MOST_INDEX_BYTES:
        raise ModelError(f"base model {str(address)!r} has no safetensors weights; laplora loads no pickled ones")
    noted = root / f".{_digest(str(address))}.index.json"
    save(store, INDEX, noted, size_bytes=index[0])
    names = indexed_shards(noted, str(address))
    noted.unlink()
    _check_size(str(address), [0] * len(names), 0)  # before each of them is asked for
    shards = {name: store.state(name) for name in names}
    if missing := [name for name, state in shards.items() if state is None]:
        raise ModelError(f"base model {str(address)!r}: its index names {missing[0]!r}, which is not there")
    return {INDEX: index} | {name: state for name, state in shards.items() if state is not None}


def _fetch(store: Store, address: Address, files: States, place: Path, progress: Progress | None) -> None:
    partial = place.with_name(f".{place.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    wanted = {name: state for name, state in files.items() if not (partial / name).is_file()}
    needed, free = sum(size for size, _ in wanted.values()), shutil.disk_usage(partial).free
    if needed > free:
        raise DownloadError(
            f"{address} needs {needed} bytes of disk in {place.parent}, and {free} are free: make room, or set "
            "LAPLORA_CACHE to a folder with more"
        )
    report(f"fetching {address} ({needed / 1e6:,.0f} MB)", progress)
    for name, state in sorted(wanted.items()):
        try:
            save(store, name, partial / f".{name}", size_bytes=state[0])
        except FileNotFoundError:
            raise DownloadError(f"{address}: {name} was removed while it was fetched: try again") from None
        if store.state(name) != state:
            raise DownloadError(f"{address}: {name} was replaced while it was fetched: try again")
        (partial / f".{name}").rename(partial / name)
    partial.rename(place)
