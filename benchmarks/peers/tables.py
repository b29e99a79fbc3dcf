"""results.json as tables: RESULTS.md, and the places of docs/peers.md."""

from __future__ import annotations

from typing import Any

from training.report.markdown import markdown_table

HEAD = """# laplora beside its peers

Written by `python -m benchmarks.peers`; every number is in results.json. docs/peers.md says what the numbers mean.
No number is a time.
"""


def render(results: dict[str, Any]) -> str:
    """Return RESULTS.md of the parts that were measured."""
    writers = {"laplace": laplace, "bayesian_lora": bayesian_lora}
    return "\n".join([HEAD, *(write(results[name]) for name, write in writers.items() if name in results)])


def measured(part: dict[str, Any]) -> str:
    """Return the line that says how a part was measured."""
    return "`{command}`, {date}, commit {commit}, adapter `{adapter}`, {hardware}; {versions}.\n".format_map(
        part["measured"]
    )


def laplace(part: dict[str, Any]) -> str:
    """Return the table of laplace-torch."""
    tiny, artifact = part["tiny"], part["artifact"]
    pairs = {f"tiny: {name}": v for name, v in tiny.items() if ", " in name}
    pairs |= {f"artifact: {name}": v for name, v in artifact.items() if isinstance(v, dict)}
    moved = ", ".join(f"{v:.0e} ({k})" for k, v in tiny["padding moves laplora"].items())
    heading = ["structure", "covariance", "median ratio", "lowest", "highest", "evidence"]
    return "\n".join(
        [
            "## laplace-torch\n",
            measured(part),
            "Largest relative difference of a test row's predictive covariance, ratio of variances, and relative "
            "difference of the log evidence. *Tiny*: a Llama in float64, 24 rows of 1 to 7 tokens; *padded*: "
            "laplace-torch's batches hold 8, which move laplora's covariances by "
            f"{moved}. *Artifact*: the default one's weights in float64, {artifact['rows']} training and "
            f"{artifact['rows']} test rows, one at a time, prior precision {artifact['prior_precision']:g}.\n",
            markdown_table(heading, [_laplace_row(*pair) for pair in pairs.items()]),
        ]
    )


def _laplace_row(name: str, v: dict[str, Any]) -> list[str]:
    ratios = [f"{v[key]:.4f}" for key in ("median_ratio", "lowest_ratio", "highest_ratio")]
    return [name, f"{v['covariance']:.1e}", *ratios, f"{v['evidence']:.0e}" if "evidence" in v else ""]


def bayesian_lora(part: dict[str, Any]) -> str:
    """Return the table of bayesian-lora."""
    rows, tokens, variance = part["rows"], part["tokens"], part["variance"]
    experiments = {
        "`jacobian_mean` against the dense Jacobian": f"{part['jacobians']['jacobian']:.0e}",
        "`variance` against the dense posterior of the same factors": f"{variance['own_curvature']:.0e}",
    }
    for name, ratios in part["batch_size"].items():
        words = ", ".join(f"{value:.4f} ({size})" for size, value in ratios.items())
        experiments[f"trace over the exact GGN's, {name.replace('_', ' ')} factors (rows per batch)"] = words
    kinds = {name: v for name, v in tokens.items() if name not in ("sampling", "seeds")}
    words = ", ".join(f"{value:.4f} ({name})" for name, value in kinds.items())
    experiments[f"the same, one row per batch, mean of {tokens['seeds']} seeds (factors)"] = words
    experiments["standard deviation of that trace over seeds, relative"] = f"{tokens['sampling']:.3f}"
    for prior, ratios in variance.items():
        if prior != "own_curvature":
            words = ", ".join(f"{v['median_ratio']:.3f} ({name.replace('_', ' ')})" for name, v in ratios.items())
            experiments[f"median predictive variance over the exact GGN's, {prior}"] = words
    return "\n".join(
        [
            "## bayesian-lora\n",
            measured(part),
            f"Tiny Llama, float64, {rows['train']} training rows of {rows['tokens']} tokens, {rows['test']} test rows; "
            "one seed of the sampled labels where nothing else is said.\n",
            markdown_table(["experiment", "result"], experiments.items(), left=(0, 1)),
        ]
    )


def page_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the tables of docs/peers.md by name, and its sentences' figures on the artifact."""
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
    }


def _gaps(values: dict[str, Any]) -> list[str]:
    return [f"{values[key]:.0e}" if key in values else "" for key in ("covariance", "evidence")]
