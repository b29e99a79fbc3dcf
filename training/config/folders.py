"""Which folder below ``runs`` is a configuration's: another configuration of the same name gets another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: A plain folder or file.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
#: The file of a run's folder that says whose it is: the configuration's fields, and ``made_from`` once it was trained.
CONFIG = "config.json"
#: Fields of a configuration that change no result of a run.
_WITHOUT_EFFECT = (
    ("golden_inputs",),
    ("question",),
    ("fine_tune",),  # whether more steps are taken, into the same folder
    *(("base", name) for name in ("device", "device_map", "max_memory", "dequantize")),
)


def configuration_digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a configuration's fields as JSON, without those that change no result."""
    kept = json.loads(json.dumps({k: v for k, v in fields.items() if k != "made_from"}))
    for *sections, last in _WITHOUT_EFFECT:
        place = kept
        for section in sections:
            place = place.get(section, {})
        place.pop(last, None)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def folder_of(runs: Path, name: str, fields: Mapping[str, Any]) -> Path:
    """Return the folder of a configuration: ``runs/NAME``, or ``runs/NAME-DIGEST`` where another one has that."""
    digest = configuration_digest(fields)
    plain, trial = runs / name, runs / f"{name}-{digest[:8]}"
    owners = owner(plain), owner(trial)
    if digest in owners:  # a folder that it has is kept, whatever becomes of the other one
        return plain if owners[0] == digest else trial
    return plain if owners[0] is None and not trial.exists() else trial


def owner(folder: Path) -> str | None:
    """Return the digest of the configuration that a folder belongs to; None: it is nobody's yet.

    A record that cannot be read gives the empty string, which is no configuration's digest.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        return configuration_digest(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return ""
