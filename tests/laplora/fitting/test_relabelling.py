"""Other labels for an artifact of heads, without training: each change, several, undone, and what is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import letters
from safetensors.torch import load_file
from test_learning import files_of
from tiny_models import tiny_base
from tiny_sentence_encoder import sentence_encoder_folder

import laplora
from laplora.artifact.folder import read_artifact
from laplora.artifact.label_changes import LabelChanges, Relabelling, history_of
from laplora.artifact.manifest import ROWS, SCORES
from laplora.artifact.report_page import REPORT_PAGE
from laplora.commands.app import main
from laplora.decisions.wanted import Costs
from laplora.errors import ConditioningError, ConfigError, DataError, LaploraWarning
from laplora.experts.base import Outputs
from laplora.fitting.relabelling import told_apart

#: By label the letters of its texts: those of the last are of the third.
LETTERS = {"bill": "abcd", "order": "efgh", "parcel": "ijkl", "return": "klmn", "shop": "opqr", "late": "ijij"}
NAMES = ("bill", "order", "parcel", "return")
QUIET: Any = {"progress": False, "device": "cpu"}
OWN = {name: name for name in NAMES}
Rows = list[dict[str, Any]]


def rows_of(labels: dict[str, str], each: int, seed: int = 0) -> Rows:
    """Return rows of labels by whose letters their texts have."""
    draw, rows = random.Random(seed), Rows()
    for name, of in [*labels.items()] * each:
        own = draw.choices(LETTERS[of] + "xyz", k=draw.randint(4, 8))
        others = ("".join(draw.choices("abcdefgh", k=9)) for _ in range(3))  # unknown words: no near-copies
        rows.append({"text": " ".join([*own, *others]), "label": name})
    return rows


def fitted(folder: Path) -> Path:
    """Return the artifact of four labels by heads on a tiny decoder and a tiny sentence encoder."""
    tokenizer = letters("[CLS] $A")
    tiny_base("llama").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    encoder = str(sentence_encoder_folder(folder / "encoder", letters("[CLS] $A [SEP]")))
    labels = dict(zip(NAMES, (" w0", " w1", " w2", " w3"), strict=True))
    classifier = laplora.Classifier(tiny_base("llama"), tokenizer, "{text} z", labels, max_tokens=16)
    experts = {"names": ["frozen", "encoder"], "encoder": encoder}
    settings = laplora.FitSettings.model_validate({"experts": experts, "calibration": {"target_risk": 0.3}})
    found = laplora.fit(classifier, rows_of(OWN, 18), settings=settings, progress=False)
    return found.save(folder / "heads", base=str(folder / "base"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPLORA_CACHE", str(folder / "cache"))
        return fitted(folder)


@pytest.fixture
def artifact(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of the artifact to change."""
    monkeypatch.setenv("LAPLORA_CACHE", str(saved.parent / "cache"))
    return Path(shutil.copytree(saved, tmp_path / "heads"))


def change(folder: Path, rows: Rows | None = None, **changes: Any) -> Any:
    return laplora.condition(folder, rows or [], changes=changes, force=True, **QUIET)


def kept(folder: Path) -> torch.Tensor:
    """Return the labels of the rows that an artifact keeps."""
    return load_file(folder / ROWS)["labelled/labels"]


def test_renamed_and_renamed_back_it_answers_the_same(artifact: Path) -> None:
    asked, other = [row["text"] for row in rows_of(OWN, 6, seed=9)], {"bill": "order", "order": "bill"}
    before = laplora.load(artifact, **QUIET).predict(asked)
    assert change(artifact, rename=other).difference == pytest.approx(0, abs=1e-9)
    after = laplora.load(artifact, **QUIET).predict(asked)
    assert [one.label for one in after] == [other.get(one.label, one.label) for one in before]
    change(artifact, rename=other)
    assert [one.probs for one in laplora.load(artifact, **QUIET).predict(asked)] == [one.probs for one in before]


def test_labels_are_added_merged_and_split_and_the_packaged_version_is_put_back(artifact: Path) -> None:
    """Each step begins at the labels of the one before, and the rows that came with it stay."""
    whole = files_of(artifact)
    moved = [row | {"label": "urgent"} for row in rows_of(OWN, 18)[1:28:4]]  # copies of orders take their place
    added = change(artifact, [*rows_of({"shop": "shop"}, 10, seed=1), *moved], add=["shop", "urgent"])
    assert added.rows == 72 - 7
    assert torch.bincount(kept(artifact)).tolist() == [18, 11, 18, 18, 10, 7]
    change(artifact, merge={"return": ["parcel", "return"], "order": ["order", "urgent"]})
    assert read_artifact(artifact).manifest.labels == ("bill", "order", "return", "shop")
    change(artifact, rows_of({"late": "late", "back": "return"}, 10, seed=3), split={"return": ["late", "back"]})
    manifest, labelled = read_artifact(artifact).manifest, kept(artifact)
    assert manifest.labels == ("bill", "order", "late", "back", "shop")
    assert "map" not in manifest.predictives
    late = labelled[labelled.amax(1) < 1][:, 2]
    assert late[::2].sum() > late[1::2].sum()  # parcels, whose letters they share
    assert [(one["rows"], len(one["after"])) for one in history_of(manifest)] == [(17, 6), (0, 4), (20, 5)]
    laplora.restore_packaged(artifact)
    assert files_of(artifact) == whole


@pytest.mark.parametrize("labels", [NAMES, NAMES[::-1]])
@pytest.mark.parametrize(
    "changes",
    [
        {"merge": {"order": ["bill", "return"]}},
        {"merge": {"x": ["bill", "return"]}, "rename": {"order": "x"}},
        {"merge": {"x": ["bill", "return"]}, "split": {"order": ["x", "y"]}},
        {"merge": {"x": ["bill", "return"]}, "add": ["x"]},
    ],
)
def test_what_is_merged_swallows_no_third_label(labels: tuple[str, ...], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'(x|order)' would be two labels"):
        Relabelling.of(LabelChanges.read(changes), labels)
    own = Relabelling.of(LabelChanges(merge={"bill": ["return", "bill"]}), labels)
    assert sorted(own.after) == ["bill", "order", "parcel"]
    assert own.places[labels.index("bill")] == own.places[labels.index("return")] == own.after.index("bill")


def test_no_row_that_tells_parts_apart_certifies_them() -> None:
    """The heads of a fold have labels of split rows by given rows of the other folds alone."""
    features, folds = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    outputs = Outputs(torch.ones(40, 2).bool(), {}, {"encoder": {"a": features}})
    targets = torch.full((40, 2), 0.5, dtype=torch.float64)
    targets[:20] = torch.eye(2, dtype=torch.float64)[(features[:20, 0] > 0).long()]
    other = torch.where((folds == 3)[:, None] & (targets == 1).any(1, keepdim=True), targets.flip(1), targets)
    (labels, without), (_, turned) = (
        (a, b or {}) for a, b in (told_apart(outputs, x, folds, 0) for x in (targets, other))
    )
    assert ((labels[20:, 1] > 0.5) == (features[20:, 0] > 0)).double().mean() > 0.8
    same = [one[20:].equal(other[20:]) for one, other in zip(without.values(), turned.values(), strict=True)]
    assert same == [False, False, False, True, False]


def test_rows_that_come_later_stay_and_sent_twice_count_once(artifact: Path) -> None:
    laplora.condition(artifact, rows_of({"bill": "bill", "order": "order"}, 12, seed=4), force=True, **QUIET)
    with pytest.raises(ConditioningError, match="learned later are forgotten"):
        laplora.condition(artifact, changes={"rename": {"bill": "invoice"}}, **QUIET)
    with pytest.warns(LaploraWarning, match="learned later are forgotten"):
        change(artifact, merge={"sent": ["parcel", "return"]})
    for _ in range(2):
        laplora.condition(artifact, rows_of({"bill": "bill", "sent": "parcel"}, 12, seed=5), force=True, **QUIET)
        assert len(kept(artifact)) == 72 + 24


def test_of_parts_that_nothing_tells_apart_many_answers_are_wrong(artifact: Path) -> None:
    """What is right of rows whose label was split is no guess of the head that answers."""
    change(artifact, merge={"sent": ["parcel", "return"]})
    rows = [
        row | {"label": "ab"[i // 2 % 2]}
        for i, row in enumerate(rows_of({"parcel": "parcel", "return": "return"}, 10, seed=6))
    ]
    change(artifact, rows, split={"sent": ["a", "b"]})
    name, labels, scores = read_artifact(artifact).manifest.recommended.predictive, kept(artifact), artifact / SCORES
    wrong, answered = (load_file(scores)[f"{name}.{part}"] for part in ("error", "answered"))
    guessed = (labels.amax(1) < 1) & (answered == labels.argmax(1))  # what answers and what labels agree on
    assert wrong[guessed].double().mean() > 0.2
    for said in ("36 of 92 rows have labels that the model itself gave", "Labels with fewer than 30 rows"):
        assert said in (artifact / REPORT_PAGE).read_text()


def test_the_command_names_columns_and_groups(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, add = tmp_path / "rows.csv", ["--changes", '{"add": ["shop"]}', "--device", "cpu"]
    file.write_text("body,topic,who\n" + "".join(f"{row['text']},shop,x\n" for row in rows_of({"shop": "shop"}, 10)))
    for words, said in (
        (["--rows", str(file), *add], "has no column 'text': name one of ['body', 'topic', 'who'] by --text"),
        (["--rows", str(file), "--text", "body", *add], "by --label"),
        (["--rows", str(file), "--text", "body", "--label", "topic", "--group", "who", *add], "would have 1 rows"),
        (["--undo", *add], "--undo takes neither --changes nor --rows"),
    ):
        assert main(["labels", str(artifact), *words]) == 2
        assert said in capsys.readouterr().err


def test_aims_by_label_follow_a_rename_and_are_asked_for_else(artifact: Path) -> None:
    to = Relabelling.of(LabelChanges(rename={"bill": "invoice"}), NAMES)
    found = to.wanted(Costs(review=1.0, wrong={"bill": {"order": 9.0, "*": 4.0}, "*": 2.0}))
    assert found == Costs(review=1.0, wrong={"invoice": {"order": 9.0, "*": 4.0}, "*": 2.0})
    change(artifact, rename={"bill": "invoice"}, target_risk={"invoice": 0.1, "*": 0.3})
    change(artifact, rename={"invoice": "bill"})
    rule = next(iter(read_artifact(artifact).manifest.predictives.values())).thresholds.review
    assert rule.wanted == {"bill": 0.1, "order": 0.3, "parcel": 0.3, "return": 0.3}
    with pytest.raises(ConfigError, match="Give target_risk or costs of the new labels with the changes"):
        change(artifact, merge={"paper": ["bill", "order"]})


def test_what_cannot_be_changed_is_refused_and_stays(
    artifact: Path, conditioned: laplora.CalibratedPosterior, tmp_path: Path
) -> None:
    whole, ten = files_of(artifact), rows_of({"shop": "shop"}, 10, seed=1)
    for message, rows, changes in (
        ("'bills' is none of the labels", [], {"rename": {"bills": "x"}}),
        ("two or more different labels are merged", [], {"merge": {"bill": ["bill", "bill"]}}),
        ("or is in two changes", [], {"merge": {"x": ["bill", "order"]}, "rename": {"bill": "y"}}),
        ("'order' would be two labels", [], {"merge": {"order": ["bill", "parcel"]}}),
        ("'bill' would be two labels", ten, {"add": ["bill"]}),
        ("'Bill' would be two labels, or differs", ten, {"add": ["Bill"]}),
        ("no control or invisible character", [], {"rename": {"bill": "bi\u200bll"}}),
        ("no space around it", [], {"rename": {"bill": " x"}}),
        ("have to be left, not 'all'", [], {"merge": {"all": [*NAMES]}}),
        ("changes: removed: Extra inputs", [], {"removed": ["bill"]}),
        ("changes: add.0: String should have at most 256", [], {"add": ["x" * 257]}),
        ("costs stand in place of target_risk", [], {"target_risk": 0.1, "costs": {"review": 1.0, "wrong": 2.0}}),
        ("neither changes nor rows", [], {}),
        ("'shop' would have 1 rows", [{"text": f"o p q {i}", "label": "shop"} for i in range(9)], {"add": ["shop"]}),
        ("'shop' would have 4 rows .* give 5 or more", ten[:4], {"add": ["shop"]}),
        ("'shop' would have 1 rows", ten[:1] * 9, {"add": ["shop"]}),
        ("'a' would have 0 rows", [], {"split": {"bill": ["a", "b"]}}),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            change(artifact, rows, **changes)
    other = [*rows_of({"bill": "order", "order": "bill"}, 30, seed=8), *ten]
    with pytest.raises(ConditioningError, match="NLL"):
        laplora.condition(artifact, other, changes=LabelChanges(add=["shop"]), **QUIET)
    assert files_of(artifact) == whole
    with pytest.raises(ConfigError, match="has an adapter or a trained head, which would have to be trained"):
        change(conditioned.save(tmp_path / "tiny"), rename={"negative": "bad"})
