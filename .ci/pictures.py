"""Draws the pictures of the documentation: python .ci/pictures.py writes docs/pictures/*.svg.

Each function draws one; its docstring is the picture's title and description. A change of the layers in pyproject.toml
needs a change of ``packages``; a test says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from svg import Picture

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


def packages(picture: Picture) -> None:
    """The packages of the repository

    Three columns: service, library and training. The service and the training jobs both stand on the library and never
    import each other. In each column a package imports only packages below it.
    """

    def column(x: float, width: float, title: str, kind: str, *layers: Sequence[tuple[str, str]]) -> None:
        y = 44.0
        picture.text(x + 12, 32, title, "small")
        for layer in layers:
            across = (width - 24 - 8 * (len(layer) - 1)) / len(layer)
            for i, (names, what) in enumerate(layer):
                titles = names.split("\n")
                height = 40 + 16 * (len(titles) - 1)
                picture.box(x + 12 + i * (across + 8), y, across, height, kind, *titles, what, titles=len(titles))
            y += height + 8
        picture.rect(x, 12, width, y - 6, "frame")

    column(
        12,
        352,
        "service/  the server",
        "job",
        [("asgi", "other servers"), ("ray_serve", "a Ray cluster")],
        [("starting", "flags, and what is looked at first")],
        [("app", "wires the packages together")],
        [("http/routes", "a function per endpoint")],
        [("changes", "of what is loaded"), ("deployment", "what servers share")],
        [("jobs", "large files"), ("page", "at /")],
        [("http", "bodies, headers, schemas")],
        [("backends", "who has the weights"), ("shadow", "a candidate beside")],
        [("artifacts", "what is loaded"), ("feedback", "labels")],
        [("scoring", "plan, queue, device")],
        [("security", "keys and callers")],
        [("telemetry", "metrics, logs, traces")],
        [("process", "before torch, and at the end")],
        [("lifecycle, settings, threads,\nerrors, exit_status", "what every package may use")],
    )
    column(
        386,
        310,
        "laplora/  the library",
        "library",
        [("commands", "laplora serve, evaluate, predict ...")],
        [("bulk", "whole files"), ("sklearn", "scikit-learn's")],
        [("fitting, upstream", "from rows to calibrated answers")],
        [("selection", "rows to label next"), ("settings", "of a fit")],
        [("predictor", "an artifact in, answers out")],
        [("encoder", "what needs no weights")],
        [("answers", "from the outputs of a batch to its answers")],
        [("artifact", "what is served")],
        [("prior", "prior precision")],
        [("pool", "weighs experts")],
        [("experts", "learn from labels")],
        [("predictive", "from a Gaussian to probabilities")],
        [("familiarity", "how like the training rows")],
        [("posterior", "curvature and its structures")],
        [("features", "what heads read")],
        [("classifier", "with prompt"), ("jacobians", "derivatives"), ("report", "one page")],
        [("readouts", "class logits"), ("decisions", "sets, flags, review")],
        [("models", "base models and adapters")],
        [("metrics", "scores, noise, drift"), ("data", "labelled rows")],
        [("prompts", "templates, label tokens")],
        [("remote", "hub, object stores, web servers")],
        [
            ("linearised", "the symbols"),
            ("files", "on disk"),
            ("execution", "processes"),
        ],
        [("errors", "one tree"), ("head", "arrays alone")],
    )
    column(
        718,
        242,
        "training/  the jobs",
        "file",
        [("run", "all jobs")],
        [("frozen", "heads, first")],
        [
            (
                "check, finetune,\nfit_laplace, fit_adapter,\nevaluate, package",
                "one job a file",
            )
        ],
        [("report", "tables and plots")],
        [("calibration", "thresholds")],
        [("fine_tuning", "the loop and its adapter")],
        [("workspace", "folders, stages, provenance")],
        [("config", "YAML, checked")],
        [("data", "rows and splits")],
    )
    picture.way((366, 250), (384, 250))
    picture.way((716, 250), (698, 250))
    picture.rect(718, 606, 242, 82, "frame")
    picture.text(730, 626, "laplora/client  stands alone", "small")
    picture.box(730, 636, 218, 40, "plain", "client", "asks the server over HTTP")


def request(picture: Picture) -> None:
    """The way of a request

    Five stages: parse, plan, queue, device, respond. Tokenising happens in threads of its own, the model runs in one
    device thread, and everything else happens on the event loop.
    """
    stages = (
        ("1 parse", "key, place, typed body", "predict.py", "http/routes", "job"),
        ("2 plan", "artifact, caller, deadline", "plan.py, scorer.py", "scoring", "job"),
        ("3 queue", "limits, turns, batches", "queue.py", "scoring", "job"),
        ("4 device", "one thread, the model", "device.py", "scoring", "library"),
        ("5 respond", "decisions, schema", "answers.py", "http/routes", "job"),
    )
    picture.text(16, 40, "POST /predict", "title")
    picture.text(884, 40, "the answer", "title end")
    for i, (title, what, files, package, kind) in enumerate(stages):
        x = 16 + 177 * i
        picture.box(x, 60, 158, 112, kind, title, what, files, f"service/{package}/")
        if i < 4:
            picture.way((x + 158, 116), (x + 176, 116))
        if i < 3:
            picture.way((x + 76, 172), (x + 76, 220), kind="soft")
    refusals = "401 403 413 422 429 503 504, before work is done where that can be"
    picture.box(16, 222, 506, 62, "plain", "refused: each error class has its code and status", refusals)
    picture.box(547, 222, 337, 62, "plain", "the client leaves, or time is up", "its rows leave the queue at once")
    picture.way((560, 220), (500, 174), kind="soft")


def training_run(picture: Picture) -> None:
    """The way of a training run

    A labelled file and a configuration go through the frozen fit, whose artifact serves at once. If asked for, four
    jobs follow: finetune, fit_laplace, evaluate and package, whose artifact takes its place.
    """
    jobs = (
        ("frozen", "heads, measured", "and served"),
        ("finetune", "the MAP adapter"),
        ("fit_laplace", "curvature, prior,", "thresholds"),
        ("evaluate", "every predictive", "on test rows"),
        ("package", "digests, golden", "answers"),
    )
    left = (
        ("frozen/", "heads, passes"),
        ("adapter/", "checkpoints/"),
        ("laplace/", "fit.json"),
        ("report/", "tables, plots"),
    )
    picture.box(16, 40, 120, 56, "plain", "configuration", "YAML")
    picture.box(16, 112, 120, 56, "plain", "labelled rows", "file or data set")
    picture.way((136, 68), (166, 92))
    picture.way((136, 140), (166, 116))
    picture.rect(156, 176, 560, 104, "frame")
    picture.text(168, 270, "runs/NAME: what each job leaves, so that a stopped run continues", "small")
    for i, lines in enumerate(jobs):
        x = 168 + 141 * i
        picture.box(x, 70, 120, 68, "file", *lines)
        if i < 4:
            picture.way((x + 120, 104), (x + 140, 104))
            picture.box(x, 190, 120, 56, "plain", *left[i], first="mono")
            picture.way((x + 60, 138), (x + 60, 188), kind="soft")
    picture.way((807, 138), (807, 188))
    picture.way((228, 70), (228, 50), (872, 50), (872, 188), kind="soft")
    picture.box(730, 190, 154, 72, "library", "artifacts/NAME", "what the server loads", first="mono")


def artifact(picture: Picture) -> None:
    """The artifact

    A folder. The manifest holds digests of every other file, so the digest of the manifest stands for the whole folder.
    The base model is not in it: its hash is.
    """
    files = (
        ("adapter/", "LoRA weights, as PEFT writes them"),
        ("posterior.safetensors", "curvature around them"),
        ("familiarity.safetensors", "where the training rows' states are"),
        ("scores.safetensors", "review scores of the calibration rows"),
        ("golden.json", "inputs with their recorded answers"),
        ("report/", "what was measured"),
    )
    checks = (
        "every file by its digest",
        "nothing missing, nothing extra",
        "base weights, tokenizer, labels",
        "a probe of two rows",
        "golden answers replayed",
    )
    picture.rect(16, 16, 600, 298, "frame")
    picture.text(28, 36, "artifacts/NAME", "small")
    manifest = "template, labels, prior, thresholds, the recommendation; SHA-256 of every other file"
    picture.box(32, 48, 568, 54, "library", "manifest.json", manifest, first="mono")
    for i, lines in enumerate(files):
        picture.box(32 + 288 * (i % 2), 116 + 64 * (i // 2), 280, 54, "file", *lines, first="mono")
    picture.box(664, 48, 220, 54, "plain", "base model", "not inside: its hash is")
    picture.way((600, 75), (662, 75), kind="soft")
    picture.rect(664, 126, 220, 176, "job")
    picture.text(774, 152, "checked at every load", "title middle")
    for i, check in enumerate(checks):
        picture.text(680, 180 + 24 * i, f"· {check}", "small")
    picture.way((616, 212), (662, 212))


def rows(picture: Picture) -> None:
    """The task of each part of the labelled rows

    Training rows give the adapter and the curvature. Calibration rows give prior, temperature, thresholds and the
    recommendation. Test rows give the report only.
    """
    picture.box(20, 30, 170, 56, "plain", "training rows", "most of the labels")
    picture.box(20, 120, 170, 56, "plain", "calibration rows", "held out")
    picture.box(20, 210, 170, 56, "plain", "test rows", "held out")
    picture.box(270, 20, 210, 34, "library", "adapter (MAP)")
    picture.box(270, 62, 210, 34, "library", "curvature of the loss")
    picture.box(270, 112, 210, 72, "library", "prior, temperature", "fitted on all of them")
    picture.box(540, 112, 200, 72, "library", "thresholds, sets, flags", "recommended predictive", "by cross-fitting")
    picture.box(540, 20, 200, 76, "file", "posterior", "weights that stay plausible")
    report = "report: accuracy, NLL, ECE, ranking of mistakes"
    picture.box(270, 210, 470, 56, "file", report, "nothing is fitted on these rows")
    for points in (
        [(190, 50), (268, 37)],
        [(190, 62), (268, 79)],
        [(480, 37), (538, 50)],
        [(480, 79), (538, 66)],
        [(190, 148), (268, 148)],
        [(480, 148), (538, 148)],
        [(440, 112), (440, 104), (510, 104), (510, 84), (538, 84)],
        [(190, 238), (268, 238)],
    ):
        picture.way(*points)


def predictive(picture: Picture) -> None:
    """From one model to an average over many

    A bell curve over the difference of the two logits. The fine-tuned model is one point at 8.9, which is a probability
    of 0.9999. About a third of the curve is below 0, where the label is the other one, so the average probability is
    0.68.
    """
    # An answer of training/configs/sst2-smollm2.yaml: a centred mean of 4.46 nats and a variance of 88.2 squared nats.
    # The difference of the two logits has twice that mean and four times that variance.
    mean, deviation, low, high = 2 * 4.46, 2 * math.sqrt(88.2), -45, 62
    top, bottom = 60, 230

    def across(value: float) -> float:
        return 50 + 680 * (value - low) / (high - low)

    def bell(start: float, end: float, fill: str, stroke: str) -> None:
        values = [start + (end - start) * i / 80 for i in range(81)]
        heights = [bottom - (bottom - top) * math.exp(-(((v - mean) / deviation) ** 2) / 2) for v in values]
        curve = " ".join(f"L{across(v):.1f} {y:.1f}" for v, y in zip(values, heights, strict=True))
        path = f"M{across(start):.1f} {bottom} {curve} L{across(end):.1f} {bottom}Z"
        picture.parts.append(f'<path d="{path}" fill="{fill}" stroke="{stroke}"/>')

    bell(low, 0, "#f3c9cf", "#d1495b")
    bell(0, high, "#cfe0f3", "#2a6fb0")
    picture.way((50, bottom), (730, bottom), arrow=False)
    for value in range(-40, 61, 20):
        picture.way((across(value), bottom), (across(value), bottom + 5), arrow=False)
        picture.text(across(value), bottom + 20, f"{value}".replace("-", "−"), "small middle")
    picture.text(390, bottom + 40, "difference of the two logits: negative − positive (nats)", "small middle")
    picture.way((across(mean), bottom), (across(mean), top - 14), arrow=False)
    picture.text(across(mean) + 10, top - 24, "the fine-tuned model: one point, 8.9", "title")
    picture.text(across(mean) + 10, top - 7, "map_probs: negative 0.9999", "mono")
    picture.text(across(-10), bottom - 22, "here: positive", "title middle")
    picture.text(across(24), bottom - 22, "here: negative", "title middle")
    picture.text(50, 94, "the spread over all weights that", "small")
    picture.text(50, 110, "the training rows leave plausible:", "small")
    picture.text(50, 126, "logit_variance", "mono")
    picture.text(380, 306, "average over the curve, probs: negative 0.68, positive 0.32", "title middle")


def pictures() -> dict[str, str]:
    """Return the SVG of each picture, by its name."""
    made = {}
    for draw, width, height in (
        (packages, 972, 1146),
        (request, 900, 300),
        (training_run, 900, 300),
        (artifact, 900, 330),
        (rows, 760, 290),
        (predictive, 760, 320),
    ):
        title, _, description = (draw.__doc__ or "").partition("\n\n")
        picture = Picture(width, height, title, " ".join(description.split()))
        draw(picture)
        made[draw.__name__] = str(picture)
    return made


if __name__ == "__main__":
    for name, text in pictures().items():
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
