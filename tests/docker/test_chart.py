"""The Helm chart: helm takes it, every document is one that Kubernetes takes, and its parts mean each other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "kubernetes" / "laplora"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
#: Of the chart's values files, as chart-testing names them: every value and every branch of the templates is in one.
RELEASES: dict[str, dict[str, Any]] = {"defaults": {}} | {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CHART.glob("ci/*.yaml"))
}
#: Of Prometheus's operator and the Gateway API, which Kubernetes' schemas do not know.
BESIDE = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, render: Callable[..., Any]) -> Any:
    return render(RELEASES[request.param])


def test_helm_finds_nothing_to_say_and_takes_no_older_kubernetes(
    helm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for values in RELEASES.values():
        done = helm("lint", "--strict", values=values)
        assert done.returncode == 0, done.stdout
        assert "[WARNING]" not in done.stdout
    for version, taken in (("1.27.0", True), ("1.26.9", False)):
        done = helm("template", "laplora", "--kube-version", version)
        assert (done.returncode == 0) == taken, done.stderr


@pytest.mark.parametrize("version", ["1.27", "1.37"], ids=["oldest", "newest"])
def test_kubernetes_schemas_take_every_document(release: Any, version: str) -> None:
    """Strictly: a field that they do not have is an error, as are a form or a value that they do not allow."""
    checked = 0
    for (kind, _), document in release.items():
        if kind not in BESIDE:
            assert kubernetes_validate.validate(document, version, strict=True) == version
            checked += 1
    assert checked >= 2


def test_the_rules_and_the_dashboard_are_those_of_the_monitoring_folder(render: Callable[..., Any]) -> None:
    assert not [path for path in CHART.rglob("*") if path.is_symlink()], "Flux leaves links out"
    documents = render({"monitoring": {"enabled": True}})
    monitoring = ROOT / "docker" / "monitoring"
    files = [monitoring / name for name in ("alerts.yaml", "calibration-alerts.yaml")]
    shipped = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    assert documents["PrometheusRule", "laplora"]["spec"]["groups"] == shipped
    dashboard = documents["ConfigMap", "laplora-dashboard"]["data"]["laplora.json"]
    assert json.loads(dashboard) == json.loads((monitoring / "grafana-dashboard.json").read_text(encoding="utf-8"))
    # up{job="laplora"}: the operator takes the label job from the Service's label that the monitor names.
    label = documents["ServiceMonitor", "laplora"]["spec"]["jobLabel"]
    assert documents["Service", "laplora"]["metadata"]["labels"][label] == "laplora"
    (endpoint,) = render(RELEASES["cpu-values"])["ServiceMonitor", "laplora"]["spec"]["endpoints"]
    assert "authorization" not in endpoint


def test_all_select_the_servers_pods(release: Any) -> None:
    deployment = release["Deployment", "laplora"]["spec"]
    pods = deployment["template"]["metadata"]["labels"]
    wanted = deployment["selector"]["matchLabels"]
    assert wanted.items() <= pods.items()
    (port,) = release["Service", "laplora"]["spec"]["ports"]
    for (kind, name), document in release.items():
        spec = document.get("spec", {})
        if kind == "Service":
            assert spec["selector"] == wanted
        elif kind in ("NetworkPolicy", "PodDisruptionBudget"):
            assert spec["podSelector" if kind == "NetworkPolicy" else "selector"]["matchLabels"] == wanted
        elif kind == "Deployment":
            for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
                selected = constraint["labelSelector"]["matchLabels"]
                assert selected == (wanted if constraint["maxSkew"] == 1 else {"pool": "gpu"})
        elif kind == "ServiceMonitor":  # it selects Services
            assert spec["selector"]["matchLabels"].items() <= release["Service", name]["metadata"]["labels"].items()
        elif kind == "HorizontalPodAutoscaler":
            assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) == ("Deployment", name)
        elif kind == "Ingress":
            assert [rule["host"] for rule in spec["rules"]] == spec["tls"][0]["hosts"]
            for path in (path for rule in spec["rules"] for path in rule["http"]["paths"]):
                assert path["backend"] == {"service": {"name": name, "port": {"name": port["name"]}}}
        elif kind == "HTTPRoute":
            assert spec["rules"][0]["backendRefs"] == [{"name": name, "port": port["port"]}]


def test_two_releases_of_one_namespace_do_not_meet(helm: Any) -> None:
    names = {}
    releases = {"blue": {}, "laplora-green": {}, "third": {"fullnameOverride": "chosen"}, "1.laplora": {}, "1e5": {}}
    for name, values in releases.items():
        done = helm("template", name, values=RELEASES["several-values"] | values)
        documents = [document for document in yaml.safe_load_all(done.stdout) if document]
        names[name] = {(document["kind"], document["metadata"]["name"]) for document in documents}
        assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", made) for _, made in names[name]), "DNS-1035"
        labels = [document["metadata"]["labels"] for document in documents]
        assert {one["app.kubernetes.io/instance"] for one in labels} == {name}, "a text, also where it looks a number"
    assert not names["blue"] & names["laplora-green"]
    assert all("chosen" in name and "laplora" not in name for _, name in names["third"])
    assert ("Deployment", "blue-laplora") in names["blue"]
    assert ("Service", "laplora-1e5") in names["1e5"]
    assert ("Deployment", "laplora-green") in names["laplora-green"]


#: Values that null would leave out of what Kubernetes needs.
NEEDED = (("state", "size"), ("autoscaling", "queuedTokens"), ("disruptionBudget", "maxUnavailable"))
OPEN = {"secret": "", "exposedWithoutKeys": True}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": {"claim": "a"}, "replicas": 2}, "state.claim is for one server"),
        ({"state": {"claim": "a"}, "autoscaling": {"enabled": True}}, "state.claim is for one server"),
        ({"state": {"claim": "a"}, "replicas": None}, "state.claim is for one server"),
        ({"cache": {"claim": "a", "baked": True}}, "cache.claim would hide"),
        ({"cache": {"baked": True}, "artifact": {"name": "s3://models/reviews"}}, "cache.baked leaves no room"),
        ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "maxReplicas is below"),
        ({"jobs": {"url": "postgresql://laplora@database/laplora"}, "replicas": 2}, "uploads need a place"),
        ({"jobs": {"url": "postgresql://laplora:secret@database/laplora"}}, "/jobs/url"),
        ({"jobs": {"url": "postgresql://laplora@database/laplora?password=secret"}}, "/jobs/url"),
        ({"jobs": {"url": "postgresql://laplora@one:5432,two:5433/laplora"}}, "/jobs/url"),
        ({"jobs": {"url": "postgresql://laplora@database/laplora", "sslmode": "prefer"}}, "/jobs/sslmode"),
        ({"jobs": {"passwordSecret": "a"}}, "jobs.url, which is empty"),
        ({"jobs": {"ca": {"secret": "a", "configMap": "b"}}}, "one is enough"),
        ({"gpu": {"count": 2}, "device": "cpu"}, "gpu.count above 1"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "resources names the GPU too"),
        ({"gpu": {"count": 2, "resource": "nvidia.com/mig-3g.40gb"}}, "gpu.count above 1"),
        ({"strategy": {"rollingUpdate": {"maxSurge": "0%"}}}, "a rollout could not start"),
        ({"ingress": {"enabled": True}}, "needs ingress.hosts"),
        ({"httpRoute": {"enabled": True}}, "needs httpRoute.parentRefs"),
        ({"keys": {"secret": ""}, "ingress": {"enabled": True, "hosts": ["a.example"]}}, "keys.exposedWithoutKeys"),
        ({"keys": {"secret": ""}, "httpRoute": {"enabled": True}}, "keys.exposedWithoutKeys: true if that is meant"),
        ({"keys": {"secret": ""}, "service": {"type": "LoadBalancer"}}, "keys.secret is empty"),
        ({"settings": {"conditioning": True}}, "give artifact.claim, and artifact.readOnly: false"),
        ({"settings": {"conditioning": "True"}, "artifact": {"claim": "a"}}, "artifact.readOnly: false"),
        ({"settings": {"conditioning": 1}}, "artifact.readOnly: false"),
        ({"cache": {"baked": True}, "settings": {"also_load": "s3://models/reviews"}}, "cache.baked leaves no room"),
        ({"service": {"type": "NodePort"}}, "give networkPolicy.from"),
        ({"keys": OPEN, "ingress": {"enabled": True, "hosts": ["*.example"]}}, "none with *"),
        ({"keys": OPEN, "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}, "none with *"),
        ({"extraVolumes": [{"name": "tmp"}]}, "the name tmp"),
        ({"extraVolumes": [{"name": "a"}, {"name": "a"}]}, "the name a is given twice"),
        ({"extraVolumeMounts": [{"name": "a"}]}, "/extraVolumeMounts/0"),
        ({"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]}, "there is no volume a"),
        ({"sidecars": [{"name": "server"}]}, "the name server"),
        ({"sidecars": [{"name": "a"}], "initContainers": [{"name": "a"}]}, "the name a is given twice"),
        ({"fullnameOverride": "true"}, "/fullnameOverride"),
        *(({name: None}, f"'{name}'") for name in SCHEMA["required"]),
        ({"disruptionBudget": {"maxUnavailable": "150%"}}, "/disruptionBudget/maxUnavailable"),
        ({"networkPolicy": {"egressPorts": None}}, "egressPorts"),
        ({"probes": {"readiness": None}}, "readiness"),
        ({"extraEnv": [{"name": "LAPLORA_JOBS_URL", "value": "a"}]}, "use jobs.url"),
        ({"extraEnv": [{"name": "LAPLORA_PORT", "value": "9000"}]}, "/extraEnv/0/name"),
        ({"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "A is given twice"),
        ({"extraEnv": [{"name": "LAPLORA_DEPLOYMENT", "value": "a"}]}, "LAPLORA_DEPLOYMENT is given twice"),
        ({"extraEnv": [{"name": "LAPLORA_STALL_S", "value": "9"}], "settings": {"stall_s": 9}}, "or is one that the"),
        ({"extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "0"}], "cache": {"baked": True}}, "HF_HUB_OFFLINE is"),
        ({"commonLabels": {"app.kubernetes.io/name": "other"}}, "propertyName 'app.kubernetes.io/name'"),
        ({"probes": {"liveness": {"periodSeconds": 0}}}, "/probes/liveness/periodSeconds"),
        ({"topologySpreadConstraints": [{"maxSkew": 1}]}, "/topologySpreadConstraints/0"),
        ({"autoscaling": {"enable": True}}, "additional properties 'enable' not allowed"),
        ({"settings": {"port": 9000}}, "'port'"),
        ({"settings": {"batch_token": 1}}, "'batch_token'"),
        ({"settings": {"batch_tokens": -1}}, "/settings/batch_tokens"),
        *(({group: {name: None}}, f"'{name}'") for group, name in NEEDED),
        ({"device": "gpu"}, "/device"),
        ({"image": {"digest": "sha256:1"}}, "/image/digest"),
        ({"drain": {"seconds": -1}}, "/drain/seconds"),
        ({"keys": {"secret": "Laplora Keys"}}, "/keys/secret"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(helm: Any, values: dict[str, Any], said: str) -> None:
    done = helm("template", "laplora", values=values)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_schema_knows_every_setting_but_the_charts_own_and_a_secret() -> None:
    given = set(SCHEMA["properties"]["settings"]["propertyNames"]["enum"])
    own = {"artifact", "auth", "deployment", "device", "device_map", "drain_delay_s", "drain_s", "host", "jobs_url"}
    assert given == Settings.model_fields.keys() - own - {"jobs_password_file", "keys", "port", "upstream_key"}


def test_the_schema_knows_every_value_and_no_other_and_each_is_tried_and_can_be_given_again(helm: Any) -> None:
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator(SCHEMA).validate(VALUES)

    def names(values: dict[str, Any], schema: dict[str, Any], releases: list[dict[str, Any]]) -> None:
        known = schema.get("properties", {})
        if known:
            assert set(values) == set(known) - {"global"}, schema
            assert schema["additionalProperties"] is False
            assert set(values) <= {name for release in releases for name in release}, "each is in a values file"
            for name, value in values.items():
                if isinstance(value, dict):
                    names(value, known[name], [release[name] for release in releases if name in release])

    names(VALUES, SCHEMA, list(RELEASES.values()))
    assert helm("template", "laplora", values=VALUES).stdout == helm("template", "laplora").stdout
    lists = dict.fromkeys(("extraEnv", "extraVolumes", "extraVolumeMounts", "initContainers", "sidecars", "secretEnv"))
    assert helm("template", "laplora", values=lists).stdout == helm("template", "laplora").stdout, "null is none"
