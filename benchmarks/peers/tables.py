"""results.json as tables and sentences: the places of docs/evidence.md."""

from __future__ import annotations

from typing import Any

from training.report.markdown import markdown_table

_MEASURED = "`{command}`, {date}, commit {commit}, adapter `{adapter}`, {hardware}; {versions}."


def page_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the tables of docs/evidence.md by name, and its sentences' figures on the artifact."""
    tiny, artifact = results["laplace"]["tiny"], results["laplace"]["artifact"]
    same = [
        ("`kron`, reduce", "`kfac_reduce`", "kfac_reduce, alone", ""),
        ("`kron`, expand, rows of one length", "`kfac_expand`", "kfac_expand, equal lengths", ""),
        ("`diag`", "`diagonal`", "diagonal, alone", "laplora rounds the diagonal to float32, as its file will"),
        ("`full`", "`exact`", "exact, alone", "laplace-torch multiplies the GGN with a float32 identity"),
    ]
    real = [
        ("`diag`", "`diagonal`", "diagonal"),
        ("`kron`, reduce", "`kfac_reduce`", "kfac_reduce"),
        ("`kron`, expand", "`kfac_expand`", "kfac_expand"),
        ("`full`, last layer's `v_proj.lora_B` alone", "`exact` of that block", "exact, one block"),
    ]
    heading = ["laplace-torch", "laplora", "covariance", "evidence"]
    return {
        "precision": f"{artifact['prior_precision']:g}",
        "tiny": markdown_table(
            [*heading, "what is left"], [[theirs, ours, *_gaps(tiny[key]), left] for theirs, ours, key, left in same]
        ),
        "artifact": markdown_table(heading, [[theirs, ours, *_gaps(artifact[key])] for theirs, ours, key in real]),
        **{f"measured_{name}": _MEASURED.format_map(part["measured"]) for name, part in results.items()},
    }


def _gaps(values: dict[str, Any]) -> list[str]:
    return [f"{values[key]:.0e}" if key in values else "" for key in ("covariance", "evidence")]
