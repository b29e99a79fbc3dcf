"""What lies behind an artifact's hashes, and what a conditioned one says of its packaged version: each is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tiny_runs import FinishedRun, reseal
from transformers import AutoTokenizer

from laplora.artifact.folder import new_artifact, read_artifact
from laplora.artifact.manifest import GOLDEN, MANIFEST, SCORES
from laplora.artifact.packaged import (
    CHANGED,
    PACKAGED_MANIFEST,
    finish_version,
    new_version,
    packaged_manifest,
    restore_packaged,
)
from laplora.artifact.readout_records import LabelSequencesRecord, LabelTokensRecord, ReadOutRecord
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactIncompatibleError,
    ArtifactWriteError,
    GoldenMismatchError,
    LaploraError,
)
from laplora.predictor import Predictor
from laplora.prompts.templates import TEMPLATES, resolve_label_sequences
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens

ADAPTER = "adapter/adapter_model.safetensors"

Tensors = dict[str, torch.Tensor]


def refused(folder: Path, error: type[LaploraError], message: str) -> None:
    with pytest.raises(error, match=message):
        Predictor.load(folder, device="cpu")


def test_another_prior_fails_the_golden_replay(artifact_copy: Path) -> None:
    """Its variances alone say so where the probabilities are allowed to move."""
    manifest = json.loads((artifact_copy / MANIFEST).read_text())
    golden = json.loads((artifact_copy / GOLDEN).read_text())
    assert golden["variance_tolerance"] == 0.05
    (artifact_copy / GOLDEN).write_text(json.dumps(golden | {"tolerance": 0.9}))
    prior = manifest["prior"] | {"precision": {k: 10 * v for k, v in manifest["prior"]["precision"].items()}}
    reseal(artifact_copy, prior=prior)
    message = r"golden answer 0: logit_variance differs by more than a factor of 1\.05: expected \[.*\], got \["
    refused(artifact_copy, GoldenMismatchError, message)


def test_an_artifact_replaced_while_it_loads(
    artifact_copy: Path, sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between verification and the last tensor read, another one takes its place: nobody gets a mixture."""
    from laplora.models import shared_base

    def slow(*arguments: Any, **options: Any) -> Any:
        base = original(*arguments, **options)
        with new_artifact(artifact_copy) as folder:
            shutil.copytree(sentiment_run.artifact, folder, dirs_exist_ok=True)
            reseal(folder, created="2001-01-01T00:00:00+00:00")
        return base

    original = shared_base.load_base_model
    monkeypatch.setattr(shared_base, "load_base_model", slow)
    refused(artifact_copy, ArtifactCorruptError, "was replaced while it was loaded")


READER: TypeAdapter[Any] = TypeAdapter(ReadOutRecord)
VERBALIZERS = [" rather good", " bad"]


def test_a_record_is_read_by_its_kind() -> None:
    fields = {"verbalizers": VERBALIZERS, "token_ids": [[5, 7], [6]], "normalised": False}
    tokens = READER.validate_python({"kind": "label_tokens", "verbalizers": VERBALIZERS, "token_ids": [5, 6]})
    sequences = READER.validate_python({"kind": "label_sequences", **fields})
    assert isinstance(tokens, LabelTokensRecord)
    assert tokens.readout() == LabelTokens((5, 6))
    assert isinstance(sequences, LabelSequencesRecord)
    assert sequences.readout() == LabelSequences(((5, 7), (6,)), normalised=False)
    assert sequences.class_count == 2
    assert READER.validate_json(READER.dump_json(sequences)) == sequences
    for change, message in (
        ({"token_ids": [[5], [5]]}, "two labels have the same tokens"),
        ({"token_ids": [[5], []]}, "at least 1 item"),
        ({"length": 2}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            READER.validate_python({"kind": "label_sequences", **fields, **change})


def test_another_tokenizers_labels_are_refused(base_model_folder: Path) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(base_model_folder), TEMPLATES["sentiment"]
    ids = resolve_label_sequences(tokenizer, template, VERBALIZERS)
    assert [len(tokens) for tokens in ids] == [2, 1]
    fields = {"kind": "label_sequences", "verbalizers": VERBALIZERS, "normalised": True}
    READER.validate_python({**fields, "token_ids": ids}).verify("mine", tokenizer, template)
    other = READER.validate_python({**fields, "token_ids": [ids[0], [6]]})
    with pytest.raises(ArtifactIncompatibleError, match=r"artifact 'mine': its labels are tokens .* here, .* there"):
        other.verify("mine", tokenizer, template)


def make_version(folder: Path, target: Path | None = None, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Write a version that labels changed nothing of; something else happens before it takes its place."""
    artifact = read_artifact(folder)
    with new_version(artifact, target or folder) as new:
        for name in CHANGED:
            shutil.copyfile(folder / name, new / name)
        finish_version(new, artifact.manifest.model_copy(update={"created": "later"}))
        meanwhile()


@pytest.fixture
def conditioned(artifact_copy: Path) -> Path:
    make_version(artifact_copy)
    return artifact_copy


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a conditioned artifact says of its packaged version, and seal it again."""
    fields = json.loads((folder / PACKAGED_MANIFEST).read_text())
    change(fields)
    (folder / PACKAGED_MANIFEST).write_text(json.dumps(fields))
    reseal(folder)


def refused_as_packaged(folder: Path, message: str) -> None:
    for use in (packaged_manifest, lambda artifact: restore_packaged(artifact.path)):
        with pytest.raises(ArtifactCorruptError, match=message):
            use(read_artifact(folder))
    with pytest.raises(ArtifactCorruptError, match=message):
        make_version(folder)


def test_a_path_that_leads_out_of_the_folder_writes_nothing(conditioned: Path) -> None:
    victim = conditioned.parent / "victim"
    (conditioned / "victim").mkdir()
    (conditioned / "victim" / GOLDEN).write_text("mine")
    victim.mkdir()
    (victim / GOLDEN).write_text("yours")
    record = {"sha256": "0" * 64, "size_bytes": 4}
    rewrite(conditioned, lambda fields: fields["files"].update({f"../victim/{GOLDEN}": record}))
    refused_as_packaged(conditioned, "not of the version that it was conditioned from")
    assert (victim / GOLDEN).read_text() == "yours"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(labels=fields["labels"][::-1]),
        lambda fields: fields.update(max_tokens=10**6),
        lambda fields: fields["prior"].update(precision={"all": 1.0}),
        lambda fields: fields["template"].update(text="{other}"),
        lambda fields: fields["files"][GOLDEN].update(sha256="0" * 64),
        lambda fields: fields["files"].update(more=fields["files"][SCORES]),
    ],
)
def test_a_packaged_version_of_another_artifact_is_refused(
    conditioned: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(conditioned, change)
    refused_as_packaged(conditioned, "not of the version that it was conditioned from")


def test_an_artifact_that_is_replaced_meanwhile_stays(artifact_copy: Path) -> None:
    other = Path(shutil.copytree(artifact_copy, artifact_copy.parent / "other"))
    reseal(other, created="of somebody else")

    def replace() -> None:
        shutil.rmtree(artifact_copy)
        other.rename(artifact_copy)

    with pytest.raises(ArtifactWriteError, match=r"notes\.txt"):
        make_version(artifact_copy, meanwhile=lambda: (artifact_copy / "notes.txt").write_text("mine"))
    assert (artifact_copy / "notes.txt").read_text() == "mine"
    (artifact_copy / "notes.txt").unlink()
    with pytest.raises(ArtifactWriteError, match="was replaced while"):
        make_version(artifact_copy, meanwhile=replace)
    assert read_artifact(artifact_copy).manifest.created == "of somebody else"
    assert [p.name for p in artifact_copy.parent.iterdir()] == [artifact_copy.name]


def test_a_version_is_never_of_two_artifacts(artifact_copy: Path, tmp_path: Path) -> None:
    """Files are those of the artifact that was read, whatever lies in its folder by now."""
    artifact = read_artifact(artifact_copy)
    for name, error, said in (
        (MANIFEST, ArtifactWriteError, "was replaced while .* try again"),
        (SCORES, ArtifactCorruptError, f"{SCORES} of the packaged version is missing or another"),
    ):
        kept = (artifact_copy / name).read_bytes()
        (artifact_copy / name).write_bytes(kept + b" ")
        with pytest.raises(error, match=said), new_version(artifact, tmp_path / "new"):
            pass
        (artifact_copy / name).write_bytes(kept)
    assert not (tmp_path / "new").exists()
