"""results.json as tables: RESULTS.md, and the places of docs/peers.md."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.folder import read_artifact
from training.report.markdown import markdown_table

HEAD = """# laplora beside its peers

Written by `python -m benchmarks.peers`; every number is in results.json. docs/peers.md says what the numbers mean.
No number is a time. laplora's metrics are those that the default artifact carries.
"""

#: What is compared of classifiers.
METRICS = ("accuracy", "nll", "ece", "brier", "auroc_error")
#: laplora's methods beside brier's levels: which of the artifact's rows each takes its labels from.
LABELS = {
    "zero_shot": (),
    "map": ("train",),
    "temperature": ("train", "calibration"),
    "laplace": ("train", "calibration"),
}
#: What bayesian-lora's experiments show, in words and as a format of the results.
_EXPERIMENTS = {
    "`jacobian_mean` against the dense Jacobian": "{jacobians[jacobian]:.0e}",
    "input factors, from the last token's": "{input_factors[last]:.0e}",
    "input factors, from every token's": "{input_factors[all]:.3f}",
    "`variance` against the dense posterior of the same factors": "{variance[own_curvature]:.0e}",
    "standard deviation of the trace over seeds of the sampled labels, relative": "{tokens[sampling]:.3f}",
    "rank-{order[rank]} input factor, rows reversed": "{order[reversed]:.3f}",
    "rank-{order[rank]} input factor, from the best of that rank": "{order[best_of_that_rank]:.3f}",
    "the same, nothing cut, rows reversed": "{order[reversed_without_truncation]:.0e}",
    "input factors' trace, left padding over none": "{padding[left_over_alone]:.4f}",
    "input factors' trace, right padding over none": "{padding[right_over_alone]:.4f}",
    "largest change of a class logit under right padding": "{padding[logit_change]:.2f}",
    "variance without `cholesky_decompose_small_factors`, over with": "{without_cholesky[median_ratio]:.3f}",
    "trace with the README's forward call, over class logits'": "{forward_calls[whole_vocabulary]:.3f}",
    "trace with the example script's softmax, over class logits'": "{forward_calls[softmax_twice]:.3f}",
    "input factors' trace with LoRA dropout {dropout[dropout]}, over none": (
        "{dropout[input_trace_over_no_dropout]:.3f}"
    ),
    "model left in training mode": "{dropout[left_in_training_mode]}",
    "`variance` on a batch of one row": "{one_row}",
    "`jacobian_mean` called with label ids only": "{no_callback}",
}
_LAPLACE_HEAD = ["structure", "covariance", "median ratio", "lowest", "highest"]
_LAPLACE_HEAD += ["evidence, theirs", "ours", "difference"]


def render(results: dict[str, Any]) -> str:
    """Return RESULTS.md of the parts that were measured."""
    writers = {"laplace": laplace, "bayesian_lora": bayesian_lora, "brier": brier}
    return "\n".join([HEAD, *(write(results[name]) for name, write in writers.items() if name in results)])


def measured(part: dict[str, Any]) -> str:
    """Return the line that says how a part was measured."""
    return "`{command}`, {date}, commit {commit}, adapter `{adapter}`, {hardware}; {versions}.\n".format_map(
        part["measured"]
    )


def laplace(part: dict[str, Any]) -> str:
    """Return the tables of laplace-torch."""
    tiny, artifact = part["tiny"], part["artifact"]
    pairs = {name: v for name, v in tiny.items() if ", " in name}
    pairs |= {"gp": tiny["gp"]["package"], "gp: the diagonal Hessian alone": tiny["gp"]["diagonal_hessian"]}
    real = {name: v for name, v in artifact.items() if isinstance(v, dict) and "median_ratio" in v}
    links, single = artifact["links"], artifact["float32"]
    gaps = [
        [name, f"{v['nll']:.4f}", *(f"{v[key]:.4f}" if key in v else "" for key in ("largest_gap", "mean_gap"))]
        for name, v in links.items()
        if isinstance(v, dict)
    ]
    moved = ", ".join(f"{v:.0e} ({k})" for k, v in tiny["padding moves laplora"].items())
    traces = ", ".join(f"{name} {v:.2f}" for name, v in artifact["traces"].items())
    return "\n".join(
        [
            "## laplace-torch\n",
            measured(part),
            "Largest relative difference of a test row's predictive covariance, ratio of variances, and the log "
            "evidence. Tiny Llama, float64, 24 rows of 1 to 7 tokens; *padded*: laplace-torch's batches hold 8.\n",
            markdown_table(_LAPLACE_HEAD, [_laplace_row(*pair) for pair in pairs.items()]),
            f"The same batches move laplora's covariances by {moved}.\n",
            f"The default artifact, float64, {artifact['rows']} training and {artifact['rows']} test rows, one at a "
            f"time, prior precision {artifact['prior_precision']:g}:\n",
            markdown_table(_LAPLACE_HEAD, [_laplace_row(*pair) for pair in real.items()]),
            f"In float32, {single['rows']} rows, `diag`: covariance {single['covariance']:.1e}, evidence "
            f"{single['evidence_gap']:.2f} nats apart; covariance with laplace-torch's factors and Jacobians summed in "
            f"float64: {single['double_sums']:.1e}.\n",
            f"Trace of laplora's kinds of KFAC over the exact GGN's, the same rows: {traces}.\n",
            "Probabilities from laplace-torch's `kron` mean and covariance, against the integral:\n",
            markdown_table(["", "NLL", "largest gap", "mean gap"], gaps),
            "Share of the class logits' variance that a softmax sees, median row: "
            f"{links['share_of_variance_that_a_softmax_sees']:.3f}.\n",
        ]
    )


def _laplace_row(name: str, v: dict[str, Any]) -> list[str]:
    evidence = "{evidence_laplace_torch:.4f} {evidence_laplora:.4f} {evidence:.0e}" if "evidence" in v else "  "
    row = "{covariance:.1e} {median_ratio:.4f} {lowest_ratio:.4f} {highest_ratio:.4f} " + evidence
    return [name, *row.format_map(v).split(" ")]


def bayesian_lora(part: dict[str, Any]) -> str:
    """Return the tables of bayesian-lora."""
    rows, tokens, variance, evidence = (part[name] for name in ("rows", "tokens", "variance", "evidence"))
    columns = [k for k in variance if k != "own_curvature"]
    kinds = {name: v for name, v in tokens.items() if name not in ("sampling", "seeds")}
    batches = {name.replace("_", " "): ratios for name, ratios in part["batch_size"].items()}
    return "\n".join(
        [
            "## bayesian-lora\n",
            measured(part),
            f"Tiny Llama, float64, {rows['train']} training rows of {rows['tokens']} tokens.\n",
            "Trace of the curvature over the exact GGN's, by rows per batch, one seed of the sampled labels:\n",
            markdown_table(
                ["factors", *part["batch_size"]["low_rank"]],
                [[name, *(f"{v:.4f}" for v in ratios.values())] for name, ratios in batches.items()],
            ),
            f"The same by which tokens the factors are made of, one row per batch, mean of {tokens['seeds']} seeds:\n",
            markdown_table(kinds, [[f"{v:.4f}" for v in kinds.values()]]),
            "Median ratio of the predictive variance to the exact GGN's, 8 test rows:\n",
            markdown_table(
                ["", *columns],
                [
                    [name, *(f"{variance[c][name]['median_ratio']:.3f}" for c in columns)]
                    for name in variance[columns[0]]
                ],
            ),
            markdown_table(
                ["experiment", "result"],
                [[what.format_map(part), result.format_map(part)] for what, result in _EXPERIMENTS.items()],
            ).replace("| True |", "| true |"),
            "Log evidence of one set of factors, by prior variance; the log-likelihood is "
            f"{evidence['log_likelihood']:.1f}:\n",
            markdown_table(
                ["", *(f"{v:g}" for v in evidence["prior_variance"])],
                [
                    [name, *(f"{v:.0f}" for v in evidence[key])]
                    for name, key in (("`model_evidence`", "package"), ("dense", "dense"))
                ],
            ),
        ]
    )


def brier(part: dict[str, Any]) -> str:
    """Return the table of brier and of the artifact's methods."""
    rows = [_metrics(f"brier {name}", v) for name, v in part["brier"].items()]
    rows += [_metrics(f"laplora {name}", v) for name, v in recorded().items()]
    return "\n".join(
        [
            "## brier\n",
            measured(part),
            f"SST-2, {part['rows']['test']} test rows, SmolLM2-135M-Instruct; 95 % bootstrap intervals.\n",
            markdown_table(["method", "labels", "accuracy", "NLL", "ECE", "Brier", "AUROC of errors"], rows),
        ]
    )


def _metrics(name: str, v: dict[str, Any]) -> list[str]:
    bounds = {key: "[{:.3f}, {:.3f}]".format(*v["intervals"][key]) for key in METRICS}
    return [name, str(v["labels_used"]), *(f"{v[key]:.3f} {bounds[key]}" for key in METRICS)]


def recorded() -> dict[str, Any]:
    """Return the default artifact's recorded evaluation of the same test rows by method."""
    rows = read_artifact(ARTIFACT).manifest.data["rows"]  # read_artifact: every file is what the manifest says
    evaluation = json.loads((ARTIFACT / "report" / "evaluation.json").read_text(encoding="utf-8"))
    return {
        name: kept(evaluation[name]) | {"labels_used": sum(rows[part] for part in parts)}
        for name, parts in LABELS.items()
    }


def kept(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that are compared, and their intervals."""
    intervals = {key: evaluation["intervals"][key] for key in METRICS}
    return {key: evaluation[key] for key in METRICS} | {"intervals": intervals}


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
    methods = {f"brier `{name}`": v for name, v in results["brier"]["brier"].items()}
    methods |= {f"laplora `{name}`": v for name, v in recorded().items()}
    heading = ["laplace-torch", "laplora", "covariance", "evidence"]
    return _laplace_sentences(artifact) | {
        "tiny": markdown_table(
            [*heading, "what is left"], [[theirs, ours, *_gaps(tiny[key]), left] for theirs, ours, key, left in same]
        ),
        "artifact": markdown_table(heading, [[theirs, ours, *_gaps(artifact[key])] for theirs, ours, key in real]),
        "brier": markdown_table(
            ["method", "labels", "accuracy", "NLL", "ECE"],
            [[name, v["labels_used"], *(f"{v[k]:.3f}" for k in METRICS[:3])] for name, v in methods.items()],
        ),
    }


def _laplace_sentences(artifact: dict[str, Any]) -> dict[str, str]:
    links, single = artifact["links"], artifact["float32"]
    gap = "`{}` {mean_gap:.2f} on average, at most {largest_gap:.2f} (NLL {nll:.3f})"
    return {
        "precision": f"{artifact['prior_precision']:g}",
        "traces": ", ".join(f"`{name}` {v:.2f}" for name, v in artifact["traces"].items()),
        "single": (
            f"`diag` in float32 is {single['covariance']:.0e} apart, the evidence {single['evidence_gap']:.2f} nats; "
            "with laplace-torch's factors and Jacobians summed in float64 the covariance is "
            f"{single['double_sums']:.0e} apart"
        ),
        "seen": f"{links['share_of_variance_that_a_softmax_sees']:.0%}",
        "integral": f"{links['integral']['nll']:.3f} (MAP {links['map']['nll']:.3f})",
        "links": ", ".join(gap.format(name, **links[name]) for name in ("probit", "mc", "bridge")),
    }


def _gaps(values: dict[str, Any]) -> list[str]:
    return [f"{values[key]:.0e}" if key in values else "" for key in ("covariance", "evidence")]
