"""Artifacts that lie elsewhere: fetched into the cache by their digest, checked against their manifest, pushed.

The manifest comes first, and names every other file with its size and SHA-256. A copy in the cache is whole or not
there. Several processes may ask at once.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from laplora.artifact.allowed_bases import check_model_allowed
from laplora.artifact.folder import FETCHED, MAX_MANIFEST_BYTES, Artifact, new_artifact, read_artifact
from laplora.artifact.manifest import MANIFEST, Manifest, parse_manifest
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactWriteError,
    DownloadError,
)
from laplora.files.atomic import file_sha256, write_json
from laplora.models.checkpoints import MOST_BYTES as MOST_BASE_BYTES
from laplora.models.wheels import cache_root, file_lock
from laplora.remote.address import Address, is_address, is_plain, parse_address
from laplora.remote.stores import Store, load, open_store, save

#: Endings of the files of an artifact: JSON and safetensors are read, the others are a report's.
ENDINGS = frozenset({".json", ".safetensors", ".html", ".md", ".txt", ".csv", ".png", ".svg"})
_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class FetchRules:
    """Limits on what may be fetched for the address of an artifact.

    Attributes:
        allowed_bases: base models that it may have beside those that any may (``laplora.artifact.allowed_bases``).
        most_bytes, most_files: of the artifact's files together.
        most_base_bytes: of its base model's files together, and of its sentence encoder's.
    """

    allowed_bases: tuple[str, ...] = ()
    most_bytes: int = 16 * 2**30
    most_files: int = 4096
    most_base_bytes: int = MOST_BASE_BYTES


#: The rules unless the caller gives others.
DEFAULT_RULES = FetchRules()


def local_artifact(
    where: str | Path, *, cache: Path | None = None, progress: Progress | None = None, rules: FetchRules = DEFAULT_RULES
) -> Path:
    """Return the folder of an artifact: as it is given, or where an address's copy is.

    ``rules`` are for an address alone. Errors are those of ``fetch_artifact``, and of an address ConfigError where it
    is none.
    """
    if not is_address(where):
        return Path(where)
    return fetch_artifact(parse_address(str(where)), cache=cache, progress=progress, rules=rules)


def _check_allowed(address: Address, manifest: Manifest, rules: FetchRules) -> None:
    """Raise ConfigError for a base model or a sentence encoder that nobody allowed."""
    check_model_allowed(address, manifest.base_model, manifest.revision, rules.allowed_bases)
    if manifest.encoder is not None:
        check_model_allowed(address, manifest.encoder.name, None, rules.allowed_bases, "sentence encoder")


def fetch_artifact(
    address: Address, *, cache: Path | None = None, progress: Progress | None = None, rules: FetchRules = DEFAULT_RULES
) -> Path:
    """Return the folder in the cache that has an artifact, fetched where it is not there yet, every file verified.

    If the address is pinned and cached, nothing is fetched. Complete files that a killed process fetched are kept for
    the next one.

    Args:
        cache: as of ``cache_root``; progress: told what is done.
        rules: what it may be. A base model that it may not have is refused before anything else is fetched, and also
            where the cache has the artifact; bounds are for what is fetched.

    Raises:
        ConfigError: a base model that nobody allowed.
        ArtifactNotFoundError: no artifact lies there.
        ArtifactIncompatibleError: of another format version.
        ArtifactCorruptError: another digest than the one it is pinned to; a manifest that does not parse, or that names
            paths or files that no artifact has; a file that is not what the manifest says.
        DownloadError: it cannot be fetched, or is larger than the rules have it or than the disk has room for.
    """
    say = progress or (lambda _line: None)
    root = cache_root(cache) / "artifacts"
    if address.sha256 is not None and (kept := _kept(root, address.sha256)) is not None:
        _check_allowed(address, kept.manifest, rules)
        return kept.path
    store = open_store(address)
    at = f" at commit {store.version}" if store.version else ""
    say(f"fetching {address}{at}")
    raw = _manifest_bytes(store, address)
    sha256 = hashlib.sha256(raw).hexdigest()
    if address.sha256 not in (None, sha256):
        raise ArtifactCorruptError(f"{address} has the digest sha256:{sha256}, it is pinned to {address.sha256}")
    manifest = parse_manifest(str(address), raw)
    _check_names(address, manifest)
    _check_allowed(address, manifest, rules)
    if address.sha256 is None:
        say(f"the artifact is sha256:{sha256}: #sha256={sha256} after its address pins it")
    with file_lock(root / f"{sha256}.lock", progress=progress):
        if (kept := _kept(root, sha256)) is not None:
            return kept.path
        _check_bounds(address, manifest, rules)
        partial = root / f".{sha256}.partial"
        _fetch_files(store, address, manifest, partial)
        (partial / MANIFEST).write_bytes(raw)
        read_artifact(partial)  # as a whole: that it lacks nothing which an artifact needs
        place = root / sha256
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        write_json(place / FETCHED, {"from": str(address), "commit": store.version, "digest": f"sha256:{sha256}"})
        return partial.rename(place / manifest.name)


def pull_artifact(address: Address, target: Path, **how: object) -> Artifact:
    """Write an artifact that lies elsewhere into a folder, in the place of an older version, and return it.

    ``how`` and errors are those of ``fetch_artifact``; ArtifactWriteError: no room, or no artifact in its place.
    """
    source = read_artifact(fetch_artifact(address, **how))  # type: ignore[arg-type]
    with new_artifact(target) as folder:
        for name in (MANIFEST, *source.manifest.files):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, folder / name)
        if read_artifact(folder).digest != source.digest:
            raise ArtifactCorruptError(f"the copy of {address} in the cache changed while it was copied: try again")
    return read_artifact(target)


def push_artifact(artifact: Artifact, address: Address, *, replace: bool = False) -> str:
    """Write an artifact to an address and return the address that it then has, pinned to its digest.

    Its manifest is written last: what a killed process left is no artifact, and the next push writes it anew.

    Args:
        replace: whether an artifact of another digest may lose its place.

    Raises:
        ArtifactWriteError: another artifact lies there; or a file that nobody could fetch.
        DownloadError: the store does not answer, or refuses. ConfigError: one that is only read.
    """
    sha256 = artifact.digest.removeprefix("sha256:")
    if odd := _odd_names(artifact.manifest):
        raise ArtifactWriteError(f"artifact {artifact.name!r} has files that nobody could fetch, such as {odd[:2]}")
    if address.sha256 not in (None, sha256):
        raise ArtifactWriteError(f"artifact {artifact.name!r} has another digest than the address is pinned to")
    store = open_store(address)
    try:
        there = hashlib.sha256(load(store, MANIFEST, most_bytes=MAX_MANIFEST_BYTES)).hexdigest()
    except FileNotFoundError:
        there = None
    version = store.version
    if there != sha256:
        if there is not None and not replace:
            raise ArtifactWriteError(f"{address} has another artifact, sha256:{there}: --replace writes in its place")
        files = {name: artifact.path / name for name in (*artifact.manifest.files, MANIFEST)}
        version = store.write(files, MANIFEST)
        _check_written(open_store(address if version is None else address.at(version)), address, files)
    return f"{address.at(version) if version else address}#sha256={sha256}"


def _check_written(store: Store, address: Address, files: Mapping[str, Path]) -> None:
    """Raise DownloadError where a store lacks a file: the hub leaves out those that its repository's rules ignore."""
    for name, path in files.items():
        size, _ = store.state(name) or (None, "")
        if size != path.stat().st_size:
            raise DownloadError(f"{address}: {name} was given and is not there, or not whole: nobody can fetch it")


def _kept(root: Path, sha256: str) -> Artifact | None:
    """Return the artifact of a digest in the cache; None where it is not there, or not whole any more."""
    place = root / sha256
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        if folder.is_dir():
            try:
                if (artifact := read_artifact(folder)).digest == f"sha256:{sha256}":
                    return artifact
            except ArtifactError:
                continue
    return None


def _manifest_bytes(store: Store, address: Address) -> bytes:
    try:
        return load(store, MANIFEST, most_bytes=MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise ArtifactNotFoundError(f"no artifact at {address}: expected a folder with a {MANIFEST}") from None


def _check_names(address: Address, manifest: Manifest) -> None:
    """Raise for a manifest that asks for what no artifact has, before anything is fetched."""
    if odd := _odd_names(manifest):
        shown = [name[:80] for name in odd[:4]]
        raise ArtifactCorruptError(f"{MANIFEST} of {address} names files that no artifact has: {shown}")


def _check_bounds(address: Address, manifest: Manifest, rules: FetchRules) -> None:
    """Raise for a manifest that asks for more than may be fetched, before anything is."""
    more = "--max-fetch-{0} of a server (LAPLORA_MAX_FETCH_{1}) allows more, and laplora pull --max-{0}"
    if len(manifest.files) > rules.most_files:
        raise DownloadError(
            f"{address} has {len(manifest.files)} files, more than {rules.most_files}: {more.format('files', 'FILES')}"
        )
    total = sum(record.size_bytes for record in manifest.files.values())
    if total > rules.most_bytes:
        raise DownloadError(
            f"{address} has {total} bytes, more than {rules.most_bytes}: {more.format('bytes', 'BYTES')}"
        )


def _odd_names(manifest: Manifest) -> list[str]:
    """Return the names that could lead out of the folder, hide another file, or be of something that is no part."""
    names = Counter(name.lower() for name in manifest.files)
    folders = {name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)}
    taken = {*folders, MANIFEST}
    return [
        name
        for name in manifest.files
        if not is_plain(name)
        or Path(name).suffix not in ENDINGS
        or any(_WINDOWS.fullmatch(part) for part in name.split("/"))
        or name.lower() in taken
        or names[name.lower()] > 1
    ]


def _fetch_files(store: Store, address: Address, manifest: Manifest, folder: Path) -> None:
    """Fill a folder with an artifact's files; those that are there already, and are right, stay."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        name: record
        for name, record in manifest.files.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != record.sha256
    }
    needed, free = sum(record.size_bytes for record in wanted.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{address} needs {needed} bytes of disk in {folder.parent}, and {free} are free: make room, or set "
            "LAPLORA_CACHE to a folder with more"
        )
    for name, record in sorted(wanted.items()):
        try:
            save(store, name, folder / name, size_bytes=record.size_bytes)
        except FileNotFoundError:
            raise ArtifactCorruptError(f"{address} lacks {name}, which its {MANIFEST} names") from None
        if file_sha256(folder / name) != record.sha256:
            (folder / name).unlink()
            raise ArtifactCorruptError(
                f"{address}: {name} is not what its {MANIFEST} says: it was changed, or another version was written "
                "meanwhile"
            )
