"""Dashboard, alert rules and scrape configuration: they parse, and ask for nothing that the server does not expose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import needs
from prometheus_client.parser import text_string_to_metric_families
from serving import FakePredictor, serve

from service.errors import ERROR_KINDS
from service.telemetry.batch_report import BatchOutcome
from service.telemetry.metrics import Phase

DOCKER = Path(__file__).resolve().parents[3] / "docker"
MONITORING = DOCKER / "monitoring"
#: What Prometheus adds to every series.
TARGET_LABELS = {"job", "instance"}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return loaded


def yaml_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def rules(file: str = "alerts.yaml") -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in yaml_of(MONITORING / file)["groups"] for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of the dashboard and the rules, by where it is, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']!r} {target['refId']}", target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"]
    for name, rule in (rules() | rules("calibration-alerts.yaml")).items():
        yield f"alert {name}", rule["expr"]


def filled(expression: str) -> str:
    return re.sub(r"\$\w+", lambda found: "5m" if found[0] == "$__rate_interval" else ".*", expression)


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every series that an expression asks for: its name, and the labels that it has to have."""
    for name, matchers in re.findall(r"\b((?:laplora|process)_\w+|up)\b(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers))


async def exposed() -> dict[str, list[dict[str, str]]]:
    """Return labels of every sample of a scrape by the sample's name, after answers, refusals and a failed batch."""
    predictor = FakePredictor()
    predictor.poison[666] = RuntimeError("bug")
    async with serve(predictor) as served:
        for name in ("laplace", "map"):
            answered = (await served.predict("a b", "c", options={"predictive": name})).json()["predictions"]
            items = [{"prediction_id": answer["prediction_id"], "label": "negative"} for answer in answered]
            assert (await served.client.post("/feedback", json={"items": items})).status_code == 200
        await served.predict("666")
        labelled = [{"text": "a", "label": "negative"}]
        assert (await served.client.post("/evaluate", json={"inputs": labelled})).status_code == 200
        text = (await served.client.get("/metrics")).text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        # A gauge that has no value yet, as of drift before there are enough answers, has its name.
        if family.type == "gauge":
            found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.anyio
async def test_every_series_asked_for_is_exposed_with_its_labels() -> None:
    closed = {
        "reason": {kind.code for kind in ERROR_KINDS},
        "outcome": set(BatchOutcome.__args__),  # type: ignore[attr-defined]
        "phase": set(Phase.__args__),  # type: ignore[attr-defined]
        "stage": {"total", "queue", "compute", "tokenize"},
        "decision": {"accept", "review"},
    }
    asked, samples = 0, await exposed()
    labels = {name: {label for one in found for label in one} | TARGET_LABELS for name, found in samples.items()}
    for where, expression in expressions():
        asks = [(name, matchers) for name, matchers in selectors(expression) if name != "up"]
        for name, matchers in asks:
            assert name in samples, f"{where} asks for {name}"
            fits = set(matchers) <= labels[name] or not samples[name]
            assert fits, f"{where} asks {name} for labels that it does not have"
            for label in closed.keys() & matchers.keys():
                assert set(matchers[label].split("|")) <= closed[label], f"{where} names a {label} that there is not"
        asked += len(asks)
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")}
        known = TARGET_LABELS.union(*(labels[name] for name, _ in asks))
        assert grouped <= known, f"{where} groups by a label that nothing has"
    assert asked > 60


def test_the_dashboard_can_be_imported_anywhere() -> None:
    board = dashboard()
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    everything = [*board["panels"], *board["annotations"]["list"], *board["templating"]["list"]]
    named = [thing["datasource"] for thing in everything if "datasource" in thing]
    named += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert {json.dumps(source) for source in named} == {'{"type": "prometheus", "uid": "${datasource}"}'}
    for _, expression in expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= {*variables, "__rate_interval"}
    assert not {"__inputs", "id"} & set(board), "numbers of another Grafana's data base"


def run_promtool(*arguments: str | Path, at: Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], cwd=at, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_promtool_accepts_configuration_and_expressions_and_alerts_fire_as_written(tmp_path: Path) -> None:
    for name in ("prometheus.yaml", "alerts.yaml", "alerts.test.yaml", "calibration-alerts.yaml"):
        shutil.copy(MONITORING / name, tmp_path)
    (tmp_path / "metrics-token").write_text("lpl_x")
    recorded = [{"record": f"expression:{i}", "expr": filled(one)} for i, (_, one) in enumerate(expressions())]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    for arguments in (
        ("check", "config", "prometheus.yaml"),
        ("check", "rules", "--lint-fatal", "all.yaml", "alerts.yaml"),
        ("test", "rules", "alerts.test.yaml"),
    ):
        done = subprocess.run(["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_history_on_which_it_fires_and_one_on_which_it_does_not() -> None:
    outcomes: dict[str, set[bool]] = {}
    for case in yaml_of(MONITORING / "alerts.test.yaml")["tests"]:
        for query in case["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)"', query["expr"])
            outcomes.setdefault(name, set()).add(bool(query["exp_samples"]))
    assert outcomes == {name: {True, False} for name in rules()}
    for name, rule in rules().items():
        assert re.fullmatch(r"Laplora[A-Z]\w+", name)
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_compose_mounts_what_the_containers_read() -> None:
    servers = yaml_of(DOCKER / "compose.yaml")["services"]
    services = yaml_of(DOCKER / "compose.monitoring.yaml")["services"]
    assert set(services) == {*servers, "prometheus", "grafana"}
    scrape = yaml_of(MONITORING / "prometheus.yaml")
    (job,) = scrape["scrape_configs"]
    for name in servers:
        (alias,) = services[name]["networks"]["default"]["aliases"]
        assert job["static_configs"] == [{"targets": [f"{alias}:8000"]}]
    mounted: dict[str, str] = {}
    for service in (services["prometheus"], services["grafana"]):
        assert service["profiles"] == ["monitoring"]
        # Any image can be named from outside, and nothing is open to other machines.
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-\S+:\S+\}", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        mounted |= {mount["target"]: mount["source"] for mount in service["volumes"] if isinstance(mount, dict)}
    configured = next(flag for flag in services["prometheus"]["command"] if flag.startswith("--config.file"))
    folder = Path(configured.partition("=")[2]).parent
    read = [*scrape["rule_files"], job["authorization"]["credentials_file"]]
    assert {str(folder / name) for name in read} <= set(mounted)
    (provider,) = yaml_of(MONITORING / "provisioning" / "dashboards" / "laplora.yaml")["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted[home] == "./monitoring/grafana-dashboard.json"
    assert str(Path(home).parent) == provider["options"]["path"]
