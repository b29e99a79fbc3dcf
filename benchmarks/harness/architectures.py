"""Four models' architectures, as their ``config.json`` on the hub has them (``architectures.json``).

The numbers were typed from public copies of the files, for no hub could be reached; LongRoPE's factors are rounded to
five digits. Phi-3 (arXiv 2404.14219) is that of its update of July 2024.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: By hub id.
ARCHITECTURES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def architecture(model: str, **changes: Any) -> Any:
    """Return transformers' configuration of one of them, by hub id, with changes of its fields."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**ARCHITECTURES[model] | changes)
