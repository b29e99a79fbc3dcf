"""The configuration of a run: defaults, refusals (all at once), and overrides from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from benchmarks.harness.provenance import ARTIFACT
from laplora.errors import ConfigError
from training.config import DataConfig, RunConfig, Section, config_hash_fields, load_config
from training.data.section import InlineTemplate, SplitPaths

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "training" / "configs"
MINIMAL: dict[str, Any] = {"name": "x", "data": {"dataset": "winogrande_s"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", MINIMAL)


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_field_is_described() -> None:
    sections = [model for model in Section.__subclasses__() if model.__module__.startswith("training")]
    assert RunConfig in sections
    for model in (*sections, DataConfig, SplitPaths, InlineTemplate):
        kinds = {name: field.annotation for name, field in model.model_fields.items() if not field.description}
        assert [name for name, kind in kinds.items() if not issubclass(kind or int, BaseModel)] == [], model.__name__


def test_all_bad_fields_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        {
            "name": "../outside",
            "colour": "red",
            "base": {"quantization": "int3", "mdoel": "x"},
            "data": {"dataset": "imdb"},
            "adapter": {"dropout": 1.0, "targets": []},
            "optimizer": {"learning_rate": "fast", "steps": 0},
        },
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 9 bad field(s)\n")
    named = re.findall(r"^  ([\w.]+): ", message, re.MULTILINE)
    fields = "name colour base.quantization base.mdoel data.dataset adapter.dropout adapter.targets"
    assert sorted(named) == sorted([*fields.split(), "optimizer.learning_rate", "optimizer.steps"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"dataset": "sst2", "source": "hub"}}, "data.source: .* 'wheel'.*dataset: hub:nyu-mll/glue with"),
        ({"laplace": {"many_classes": {"leading": 0, "samples": 0}}}, "leading and samples are both 0"),
        ({"laplace": {"many_classes": {"directions": 0}}}, "laplace.many_classes.*directions"),
        ({"predictives": {"serve": "conditioned", "conditioned": False}}, "serve: conditioned is off; on are"),
        ({"calibration": {"rows": "cross_fit", "guarantee": "upper_bound"}}, "it was trained on all of them"),
        *(({"name": name}, "name: String should match pattern") for name in ("", ".", "..", "a/b", "-x", "a b", "ü")),
        ({"base": {"device_map": "auto", "device": "cuda:0"}}, "leave it at auto"),
        ({"base": {"max_memory": {0: "1GiB"}}}, "give both"),
        ({"base": {"device_map": {"model": "disk"}}}, "fetched in every pass"),
        ({"name": "x" * 56}, "name: String should have at most 55 characters"),  # room for the digest of a trial
    ],
)
def test_combinations_that_cannot_work(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "run.yaml", MINIMAL | sections))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a mapping of sections"),
        ("- 1\n- 2\n", "must hold a mapping of sections"),
        ("name: [", "is not valid YAML"),
        ("name: é".encode("latin-1"), "cannot be read as UTF-8 text"),
        (None, "no configuration at .*run.yaml; the ready ones are in training/configs"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("{}", r"2 bad field\(s\)\n  name: Field required\n  data: Field required"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml")


def test_overrides(file: Path) -> None:
    """Also into a section that is empty; one of the length takes the place of the other way to say it."""
    file.write_text(file.read_text() + "optimizer:\n")
    overrides = ["adapter.targets=[v_proj]", "name=other", "base.revision=null", "runs=/tmp/a=b", "seed=1", "seed=3"]
    config = load_config(file, [*overrides, "optimizer.steps=5", "optimizer.learning_rate=1e-3"])
    assert config.adapter.targets == ("v_proj",)
    assert (config.name, config.base.revision, config.seed) == ("other", None, 3)
    assert config.run_dir == Path("/tmp/a=b/other")
    assert config.artifact_dir == Path("artifacts/other")
    write(file, MINIMAL | {"optimizer": {"steps": 40}})
    optimizer = load_config(file, ["optimizer.epochs=1.5"]).optimizer
    assert (optimizer.steps, optimizer.epochs) == (None, 1.5)
    assert load_config(file, ["laplace.many_classes.directions=5"]).fit.many_classes.directions == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.steps", "takes section.key=value, got 'optimizer.steps'"),
        ("name.first=x", "name is a single value"),
        ("optimizer.steps=[", "the value is not valid YAML"),
        ("optimizer.stesp=3", "optimizer.stesp: Extra inputs are not permitted: did you mean 'steps'"),
        (
            'data.template={"name":"a","text":"b","txt":"x"}',
            "1 bad field(s)\n  data.template.txt: Extra inputs are not permitted: did you mean 'text'?",
        ),
        ("optimizer.epochs=2 optimizer.steps=3", "optimizer: steps and epochs are both given: give one of them"),
    ],
)
def test_overrides_that_cannot_be(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(file, override.split())


def test_the_default_artifact_is_what_its_configuration_makes() -> None:
    """Field by field: who changes the file must train again, so that whoever runs it gets that artifact."""
    recorded = json.loads((ARTIFACT / "manifest.json").read_text(encoding="utf-8"))["config"]
    assert recorded["optimizer"].pop("class_weights") is None  # fields that were removed since
    assert recorded["calibration"].pop("conformal") == "lac"
    made = load_config(CONFIGS / f"{ARTIFACT.name}.yaml")
    assert config_hash_fields(RunConfig.model_validate(recorded)) == config_hash_fields(made)
