"""Draws the pictures of the documentation: python .ci/pictures.py writes docs/pictures/*.svg.

Each function returns one picture. A change of the layers in pyproject.toml needs a change of ``rooms``; a test says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
STYLE = """
  text { font: 14px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1b2733 }
  .title { font-weight: 600 } .small { font-size: 12px; fill: #52606d } .middle { text-anchor: middle }
  .mono { font: 12.5px ui-monospace, Menlo, Consolas, monospace } .end { text-anchor: end }
  .room { fill: #eaf1fa; stroke: #2a6fb0 } .job { fill: #fdf1e3; stroke: #c77d2a }
  .file { fill: #eef6ee; stroke: #3a7d44 } .plain { fill: #f5f6f8; stroke: #9aa5b1 }
  .frame { fill: none; stroke: #9aa5b1; stroke-dasharray: 5 4 }
  .way { fill: none; stroke: #3e4c59; stroke-width: 1.6 }
  .soft { fill: none; stroke: #9aa5b1; stroke-width: 1.4; stroke-dasharray: 4 3 }
"""
ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#3e4c59"/></marker></defs>'
)
Points = Sequence[tuple[float, float]]
Row = Sequence[tuple[str, str]]


class Picture:
    """An SVG picture on white; positions are pixels from the top left corner."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            ARROW,
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>\n"])

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Write one line of text."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw an empty box."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str,
        *lines: str,
        titles: int = 1,
        first: str = "title",
    ) -> None:
        """Draw a box with lines of text in its middle, the first ones as titles."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 - (len(lines) - 1) * 8.25 + 5
        for i, line in enumerate(lines):
            self.text(x + width / 2, top + 16.5 * i, line, f"{first if i < titles else 'small'} middle")

    def way(self, *points: tuple[float, float], kind: str = "way", arrow: bool = True) -> None:
        """Draw a line through points, by default with an arrow at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<path d="{path}" class="{kind}"{end}/>')


def rooms() -> Picture:
    """The packages, each with its rooms in the floors of import-linter's contracts."""
    picture = Picture(
        920,
        650,
        "The rooms of the repository",
        "Three columns: service, library and training. The service and the training jobs both stand on the library and "
        "never import each other. In each column a room imports only rooms below it.",
    )

    def column(x: float, width: float, title: str, kind: str, *floors: Row) -> None:
        y = 44.0
        picture.text(x + 12, 32, title, "small")
        for floor in floors:
            across = (width - 24 - 8 * (len(floor) - 1)) / len(floor)
            for i, (names, what) in enumerate(floor):
                titles = names.split("\n")
                height = 40 + 16 * (len(titles) - 1)
                picture.box(x + 12 + i * (across + 8), y, across, height, kind, *titles, what, titles=len(titles))
            y += height + 8
        picture.rect(x, 12, width, y - 6, "frame")

    column(
        12,
        250,
        "service/  the server",
        "job",
        [("app", "wires the rooms together")],
        [("http/routes", "a function per endpoint")],
        [("jobs", "evaluations"), ("feedback", "later labels")],
        [("http", "bodies, headers, schemas")],
        [("artifacts", "what is loaded")],
        [("scoring", "plan, queue, device")],
        [("security", "keys and callers")],
        [("telemetry", "metrics, logs, traces")],
        [("lifecycle, settings, threads,\nerrors, exit_status", "what every room may use")],
    )
    column(
        284,
        360,
        "laplora/  the library",
        "room",
        [("predictor", "an artifact in, answers out")],
        [("answers", "from the outputs of a batch to its answers")],
        [("artifact", "the folder that is served"), ("prior", "prior precision")],
        [("predictive", "from a Gaussian to probabilities")],
        [("posterior", "curvature and its structures")],
        [("jacobians", "how logits change with weights")],
        [("decisions", "sets, flags, review")],
        [("models", "base, adapter, class logits")],
        [("metrics", "scores, ranking, noise, drift")],
        [("prompts", "templates, label tokens")],
        [("linearised", "symbols of the method"), ("files", "written whole")],
        [("errors", "one tree")],
    )
    column(
        666,
        242,
        "training/  the jobs",
        "file",
        [("run", "all jobs in turn")],
        [("finetune, fit_laplace,\nevaluate, package, shift", "one job a file")],
        [("report", "tables and plots")],
        [("calibration", "thresholds, predictives")],
        [("workspace", "folders, stages, provenance")],
        [("config", "YAML, checked")],
        [("data", "rows and splits")],
    )
    picture.way((264, 250), (282, 250))
    picture.way((664, 250), (646, 250))
    picture.rect(666, 556, 242, 82, "frame")
    picture.text(678, 576, "laplora/client  stands alone", "small")
    picture.box(678, 586, 218, 40, "plain", "client", "asks the server over HTTP")
    return picture


def request() -> Picture:
    """The five stages of a request."""
    picture = Picture(
        900,
        300,
        "The way of a request",
        "Five stages: parse, plan, queue, device, respond. Tokenising happens in threads of its own, the model runs in "
        "one device thread, and everything else happens on the event loop.",
    )
    stages = (
        ("1 parse", "key, place, typed body", "predict.py", "http/routes", "job"),
        ("2 plan", "artifact, caller, deadline", "plan.py, scorer.py", "scoring", "job"),
        ("3 queue", "room, turns, batches", "queue.py", "scoring", "job"),
        ("4 device", "one thread, the model", "device.py", "scoring", "room"),
        ("5 respond", "decisions, schema", "answers.py", "http/routes", "job"),
    )
    picture.text(16, 40, "POST /predict", "title")
    picture.text(884, 40, "the answer", "title end")
    for i, (title, what, files, room, kind) in enumerate(stages):
        x = 16 + 177 * i
        picture.box(x, 60, 158, 112, kind, title, what, files, f"service/{room}/")
        if i < 4:
            picture.way((x + 158, 116), (x + 176, 116))
        if i < 3:
            picture.way((x + 76, 172), (x + 76, 220), kind="soft")
    refusals = "401 403 413 422 429 503 504, before work is done where that can be"
    picture.box(16, 222, 506, 62, "plain", "refused: each error class has its code and status", refusals)
    picture.box(547, 222, 337, 62, "plain", "the client leaves, or time is up", "its rows leave the queue at once")
    picture.way((560, 220), (500, 174), kind="soft")
    return picture


def training_run() -> Picture:
    """The four jobs of a training run and what each leaves."""
    picture = Picture(
        900,
        300,
        "The way of a training run",
        "A labelled file and a configuration go through four jobs: finetune, fit_laplace, evaluate and package. Each "
        "writes its result into the folder of the run, and the last one writes the artifact.",
    )
    jobs = (
        ("finetune", "the MAP adapter"),
        ("fit_laplace", "curvature, prior,", "thresholds"),
        ("evaluate", "every predictive", "on test rows"),
        ("package", "digests, golden", "answers"),
    )
    left = (("adapter/", "checkpoints/"), ("laplace/", "fit.json"), ("report/", "tables, plots"))
    picture.box(16, 40, 120, 56, "plain", "configuration", "YAML")
    picture.box(16, 112, 120, 56, "plain", "labelled rows", "file or data set")
    picture.way((136, 68), (166, 92))
    picture.way((136, 140), (166, 116))
    picture.rect(156, 176, 560, 104, "frame")
    picture.text(168, 270, "runs/NAME: what each job leaves, so that a stopped run continues", "small")
    for i, lines in enumerate(jobs):
        x = 168 + 173 * i
        picture.box(x, 70, 140, 68, "file", *lines)
        if i < 3:
            picture.way((x + 140, 104), (x + 172, 104))
            picture.box(x, 190, 140, 56, "plain", *left[i], first="mono")
            picture.way((x + 70, 138), (x + 70, 188), kind="soft")
    picture.way((827, 104), (850, 104), (850, 188))
    picture.box(730, 190, 154, 72, "room", "artifacts/NAME", "what the server loads", first="mono")
    return picture


def artifact() -> Picture:
    """What is in an artifact, and what is checked when it is loaded."""
    picture = Picture(
        900,
        330,
        "The artifact",
        "A folder. The manifest holds digests of every other file, so the digest of the manifest stands for the whole "
        "folder. The base model is not in it: its hash is.",
    )
    files = (
        ("adapter/", "LoRA weights, as PEFT writes them"),
        ("posterior.safetensors", "curvature around them"),
        ("distilled.safetensors", "predicts the variances of fast"),
        ("scores.safetensors", "review scores of the calibration rows"),
        ("golden.json", "inputs with their recorded answers"),
        ("report/, members/", "what was measured; an ensemble"),
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
    picture.box(32, 48, 568, 54, "room", "manifest.json", manifest, first="mono")
    for i, lines in enumerate(files):
        picture.box(32 + 288 * (i % 2), 116 + 64 * (i // 2), 280, 54, "file", *lines, first="mono")
    picture.box(664, 48, 220, 54, "plain", "base model", "not inside: its hash is")
    picture.way((600, 75), (662, 75), kind="soft")
    picture.rect(664, 126, 220, 176, "job")
    picture.text(774, 152, "checked at every load", "title middle")
    for i, check in enumerate(checks):
        picture.text(680, 180 + 24 * i, f"· {check}", "small")
    picture.way((616, 212), (662, 212))
    return picture


def rows() -> Picture:
    """What training, calibration and test rows are for."""
    picture = Picture(
        760,
        290,
        "What each part of the labelled rows is for",
        "Training rows give the adapter and the curvature. Calibration rows give prior, temperature, thresholds and "
        "the recommendation. Test rows give the report only.",
    )
    picture.box(20, 30, 170, 56, "plain", "training rows", "300 in the example")
    picture.box(20, 120, 170, 56, "plain", "calibration rows", "150")
    picture.box(20, 210, 170, 56, "plain", "test rows", "422")
    picture.box(270, 20, 210, 34, "room", "adapter (MAP)")
    picture.box(270, 62, 210, 34, "room", "curvature of the loss")
    picture.box(270, 112, 210, 72, "room", "prior, temperature", "fitted on all of them")
    picture.box(540, 112, 200, 72, "room", "thresholds, sets, flags", "recommended predictive", "by cross-fitting")
    picture.box(540, 20, 200, 76, "file", "posterior", "weights that stay plausible")
    report = "report: accuracy, NLL, ECE, ranking of mistakes"
    picture.box(270, 210, 470, 56, "file", report, "nothing is fitted on these rows")
    ways: tuple[Points, ...] = (
        [(190, 50), (268, 37)],
        [(190, 62), (268, 79)],
        [(480, 37), (538, 50)],
        [(480, 79), (538, 66)],
        [(190, 148), (268, 148)],
        [(480, 148), (538, 148)],
        [(440, 112), (440, 104), (510, 104), (510, 84), (538, 84)],
        [(190, 238), (268, 238)],
    )
    for points in ways:
        picture.way(*points)
    return picture


def predictive() -> Picture:
    """README's answer as a Gaussian over the difference of its two logits.

    docs/api.md has the numbers: a centred mean of 4.46 nats and a variance of 88.2 squared nats. The difference of the
    two logits has twice that mean and four times that variance.
    """
    picture = Picture(
        760,
        320,
        "From one model to an average over many",
        "A bell curve over the difference of the two logits. The fine-tuned model is one point at 8.9, which is a "
        "probability of 0.9999. About a third of the curve is below 0, where the label is the other one, so the "
        "average probability is 0.68.",
    )
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
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "rooms": rooms,
    "request": request,
    "training_run": training_run,
    "artifact": artifact,
    "rows": rows,
    "predictive": predictive,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
