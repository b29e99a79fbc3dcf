"""Four models' architectures, as their ``config.json`` on the hub has them (``architectures.json``).

An estimate, a test or a benchmark of their shapes then needs neither the hub nor a licence. The numbers were typed from
public copies of the files, for no hub could be reached; LongRoPE's factors are rounded to five digits. Sources: Touvron
et al. (arXiv 2307.09288), Llama 3 (arXiv 2407.21783), Phi-2, and Phi-3 (arXiv 2404.14219) as of its update of July
2024.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: By hub id.
ARCHITECTURES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def architecture(model: str, **changes: Any) -> Any:
    """Return transformers' configuration of one of them.

    Args:
        model: hub id; changes: of its fields, for example ``num_hidden_layers=2``.
    """
    from transformers import AutoConfig

    return AutoConfig.for_model(**ARCHITECTURES[model] | changes)
