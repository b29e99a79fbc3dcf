"""Artifacts that somebody changed are refused by name, or answer in good form; nothing else of the machine is touched.

``LAPLORA_FUZZ=10000 python -m pytest -s tests/laplora/artifact/test_fuzz.py`` makes so many changes, and counts them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from exhaustive import drawn
from mutations import mutate, seal
from test_expert_artifacts import with_encoder
from test_loading import make_version
from tiny_runs import FinishedRun

from laplora.answers.golden import what_leaves
from laplora.artifact.folder import read_artifact
from laplora.artifact.head_files import read_kept_rows
from laplora.artifact.manifest import GOLDEN, MANIFEST, ROWS
from laplora.artifact.packaged import packaged_manifest
from laplora.artifact.report_page import read_report
from laplora.errors import ArtifactError, ConfigError, DownloadError, ModelError, NonFiniteError
from laplora.models.base import load_tokenizer
from laplora.models.shared_base import SharedBases
from laplora.predictor import Predictor

#: Changes of a run.
COUNT = int(os.environ.get("LAPLORA_FUZZ", drawn(800)))
#: Seconds and characters that a change, and the message about it, may take.
LIMIT_S, LIMIT_CHARACTERS = 60, 3000
SECRET = "the content of another file"
BASES = SharedBases()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: What may be read and written while an artifact is used, and which other files were opened.
LIBRARIES = (*filter(None, sys.path), *map(os.path.realpath, (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev")))
allowed: dict[str, tuple[str, ...]] = {}
opened: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """See a file being opened."""
    if allowed and event == "open" and isinstance(arguments[0], str):
        path, writes = os.path.abspath(arguments[0]), isinstance(arguments[2], int) and arguments[2] & WRITING
        if not path.startswith(allowed["written" if writes else "read"]):
            opened.append(path)


sys.addaudithook(watch)


@pytest.fixture(scope="module")
def made(mixture_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> list[Predictor]:
    """Two artifacts, one of heads alone, whose golden answers nearly any weights give; they keep their bases loaded."""
    root = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPLORA_CACHE", str(root / "cache"))
        folders = [with_encoder(root / "base").save(root / "tiny-heads"), root / "tiny-mixture"]
    shutil.copytree(mixture_run.artifact, folders[1])
    make_version(folders[1])
    for folder in folders:
        golden = json.loads((folder / GOLDEN).read_text())
        golden |= {"tolerance": 0.9999, "variance_tolerance": 3, "answers": golden["answers"][:1]}
        golden["answers"][0] |= {"logit_variance": None, "familiarity": None}
        (folder / GOLDEN).write_text(json.dumps(golden))
        seal(folder)
    return [Predictor.load(folder, device="cpu", bases=BASES, cache_dir=root / "cache") for folder in folders]


def use(folder: Path, file: str, of: Predictor, cache: Path) -> Any:
    """Return an artifact's answers, after all that reads the file has read it; None where no answer depends on it."""
    artifact = read_artifact(folder)
    packaged_manifest(artifact), read_report(artifact), what_leaves(folder)
    json.dumps(artifact.manifest.model_dump(mode="json"), allow_nan=False).encode()
    if file.startswith(("packaged/", "report/")):
        return None
    if file == ROWS:
        return read_kept_rows(folder / ROWS, artifact.manifest, of.experts) and None
    loaded = Predictor.load(folder, device="cpu", bases=BASES, cache_dir=cache)
    found = loaded.predict_each([loaded.sample_row()])
    for name, (answer,) in found.items():
        arrays = answer.arrays
        for probs in (arrays.probs, arrays.map_probs, *arrays.calibrated_probs.values()):
            assert probs is None or probs.shape == (len(artifact.manifest.labels),)
            assert probs is None or (abs(probs.sum() - 1) < 1e-6 and probs.min() >= 0)
        assert answer.finite
        assert answer.decision_reason
        assert loaded.decided([answer], 0.1)
        loaded.nothing_accepted(name, 0.1)
    return found


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.usefixtures("little_memory")
def test_a_changed_artifact_is_refused_or_answers_in_good_form(
    made: list[Predictor], tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("laplora.predictor.load_tokenizer", cache(load_tokenizer))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root, outcomes, faults = made[0].artifact.path.parent, Counter[str](), dict[str, str]()
    whole = [use(of.artifact.path, MANIFEST, of, root / "cache") for of in made]
    (tmp_path / "outside.json").write_text(json.dumps({"format_version": SECRET}))
    for number in range(COUNT):
        of = made[number % 2]
        folder = tmp_path / of.artifact.name
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "moved").unlink(missing_ok=True)
        shutil.copytree(of.artifact.path, folder)
        file, sealed, how = mutate(folder, number)
        what, message = f"{number}: {how} of {file}", ""
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=2)
        written = str(folder), str(root / "cache")
        allowed.update(written=written, read=(*written, str(root), str(tiny_base_folder), *LIBRARIES))
        try:
            found = use(folder, file, of, root / "cache")
            outcome = "same answers" if found in (None, whole[number % 2]) else "other answers"
            assert sealed or file == MANIFEST or outcome == "same answers"
        except (ArtifactError, ModelError, DownloadError, ConfigError, NonFiniteError) as error:
            outcome, message = type(error).__name__, str(error)
        except Exception as error:
            outcome, faults[what] = "fault", f"{type(error).__name__}: {error}"[:300]
        allowed.clear()
        outcomes[f"{'sealed' if sealed else 'digests as they were'}: {outcome}"] += 1
        if opened or SECRET in message or len(message) > LIMIT_CHARACTERS:
            faults[what] = f"opened {opened}, said {message[:300]}"
            opened.clear()
    faulthandler.cancel_dump_traceback_later()
    with capsys.disabled():
        sys.stdout.write(f"\n{COUNT} changes: {dict(outcomes.most_common())}, {len(faults)} faults\n")
    assert faults == {}
    assert [use(of.artifact.path, MANIFEST, of, root / "cache") for of in made] == whole
