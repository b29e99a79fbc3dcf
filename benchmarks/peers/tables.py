"""results.json as a table and sentences: the places of docs/evidence.md."""

from __future__ import annotations

from typing import Any

from training.report.markdown import markdown_table

_MEASURED = "`{command}`, {date}, commit {commit}, {hardware}; {versions}."


def page_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of docs/evidence.md, and what was measured when, by name."""
    tiny = results["laplace"]["tiny"]
    same = [
        ("`kron`, reduce", "`kfac_reduce`", "kfac_reduce, alone", ""),
        (
            "`full`",
            "`joint_core`, nothing left out",
            "joint_core, alone",
            "laplace-torch multiplies the GGN with a float32 identity",
        ),
    ]
    heading = ["laplace-torch", "laplora", "covariance", "evidence", "what is left"]
    rows = [[theirs, ours, *(f"{tiny[key][of]:.0e}" for of in heading[2:4]), left] for theirs, ours, key, left in same]
    return {
        "tiny": markdown_table(heading, rows),
        **{f"measured_{name}": _MEASURED.format_map(part["measured"]) for name, part in results.items()},
    }
