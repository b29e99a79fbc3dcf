"""What a pod of the chart is told, against what the image and the server say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from test_docker import environment, parse, settings_of

from benchmarks.harness.provenance import ARTIFACT
from service.app import create_app
from service.settings import Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
IMAGE = environment(parse("service.Dockerfile")[1][-1])


def pod(documents: Any) -> dict[str, Any]:
    """Return the Deployment's pod specification."""
    return documents["Deployment", "laplora"]["spec"]["template"]["spec"]


def server(documents: Any) -> dict[str, Any]:
    """Return its one container."""
    (container,) = pod(documents)["containers"]
    return dict(container)


def variables(documents: Any) -> dict[str, str]:
    """Return the environment that the image and the pod make together."""
    return IMAGE | {entry["name"]: entry["value"] for entry in server(documents)["env"]}


@pytest.fixture
def settings(render: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return the settings of a server in a pod with these values."""
    return lambda **values: settings_of(variables(render(values)), monkeypatch)


def test_the_server_obeys_the_values(settings: Callable[..., Settings]) -> None:
    plain = settings()
    assert (plain.device, plain.auth, plain.host) == ("cuda", "keys", "0.0.0.0")
    assert plain.artifact == ARTIFACT.name
    chosen = settings(
        device="cpu",
        artifact={"name": "s3://models/reviews"},
        keys={"secret": ""},
        drain={"delaySeconds": 7, "seconds": 60},
        settings={"max_kept_job_bytes": 8589934592, "client_share": 0.25, "conditioning": True, "log_format": "text"},
    )
    service = ("laplora", "laplora.default", "laplora.default.svc", "laplora.default.svc.cluster.local")
    assert chosen.allowed_hosts == service
    outside = {"allowed_hosts": "laplora.example,box"}
    assert settings(keys={"secret": ""}, settings=outside).allowed_hosts == (*service, "laplora.example", "box")
    assert (chosen.device, chosen.artifact, chosen.auth) == ("cpu", "s3://models/reviews", "off")
    assert (chosen.drain_delay_s, chosen.drain_s) == (7, 60)
    assert (chosen.max_kept_job_bytes, chosen.client_share) == (8589934592, 0.25)
    assert (chosen.conditioning, chosen.log_format) == (True, "text")


def test_no_value_of_the_chart_is_also_a_setting(render: Callable[..., Any], helm: Any) -> None:
    """What the chart sets itself cannot be set twice: the later line would win without a word."""
    ours = {name.removeprefix("LAPLORA_").lower() for name in variables(render()) if name.startswith("LAPLORA_")}
    from_image = {name.removeprefix("LAPLORA_").lower() for name in IMAGE if name.startswith("LAPLORA_")}
    for name in (ours - from_image) | {"port", "host", "keys"}:
        assert helm("template", "laplora", values={"settings": {name: "1"}}).returncode != 0, name


def test_probes_ask_what_the_server_answers_on_its_port(
    render: Callable[..., Any], settings: Callable[..., Settings]
) -> None:
    container = server(render())
    (port,) = container["ports"]
    assert port["containerPort"] == settings().port
    paths = set(create_app(Settings(auth="off")).openapi()["paths"])
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert {probe["path"] for probe in probes.values()} <= paths
    # A load may take hours: what restarts the container must not wait for the model.
    assert probes["startup"]["path"] == probes["liveness"]["path"] == "/health/live"
    assert probes["readiness"]["path"] == "/health/ready"


@pytest.mark.parametrize("drain", [{}, {"delaySeconds": 40, "seconds": 300, "preStopSeconds": 20}])
def test_a_pod_has_the_time_that_its_server_takes_to_drain(render: Any, settings: Any, drain: dict[str, int]) -> None:
    documents, server_settings = render({"drain": drain}), settings(drain=drain)
    slept = int(server(documents).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0, 0])[1])
    assert slept == drain.get("preStopSeconds", 0)
    # 5 s: what the server takes at most to leave once the drain is over
    needed = slept + server_settings.drain_delay_s + server_settings.drain_s + 5
    assert pod(documents)["terminationGracePeriodSeconds"] > needed
    # Whoever asks the pod itself, as a load balancer outside the cluster does, notices within the delay.
    probe = server(documents)["readinessProbe"]
    assert server_settings.drain_delay_s > probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize(
    "values",
    [{}, {"cache": {"baked": True}}, {"cache": {"claim": "models"}, "artifact": {"claim": "artifacts"}}],
    ids=["plain", "baked", "claims"],
)
def test_what_the_server_writes_is_a_volume(render: Any, settings: Any, values: dict[str, Any]) -> None:
    documents = render(values)
    container = server(documents)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pod(documents)["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == volumes
    writable = [PurePosixPath(path) for path, mount in mounts.items() if not mount.get("readOnly")]

    def is_writable(path: Any) -> bool:
        return any(PurePosixPath(path).is_relative_to(folder) for folder in writable)

    given = settings(**values)
    assert is_writable("/tmp")
    assert is_writable(given.jobs_dir)
    assert is_writable(variables(documents)["HOME"]), "libraries keep caches there"
    assert is_writable(given.cache) == (not values.get("cache", {}).get("baked")), "a volume would hide what is baked"
    assert not is_writable(given.artifacts_root)
    assert str(given.keys.parent) in mounts, "a whole folder, which follows its Secret"
    assert not is_writable(given.keys)


def test_the_server_has_no_rights_and_a_service_called_laplora_sets_nothing(
    render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, container = pod(render()), server(render())
    user, group = parse("service.Dockerfile")[1][-1].one("USER").split(":")
    context = spec["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user), int(group), int(group))
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    (keys,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys"]
    assert keys["defaultMode"] & 0o007 == 0, "nobody else reads the keys, and the server refuses a file all can write"
    # Kubernetes would give this variable to every pod of the namespace, and no server would start.
    assert spec["enableServiceLinks"] is False
    monkeypatch.setenv("LAPLORA_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ValueError, match="port"):
        Settings()


def test_a_gpu_is_asked_for_where_one_is_used(render: Any) -> None:
    gpu, cpu = render(), render({"device": "cpu"})
    assert server(gpu)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {toleration["key"] for toleration in pod(gpu)["tolerations"]} == {"nvidia.com/gpu"}
    assert "nvidia.com/gpu" not in server(cpu)["resources"]["limits"]
    assert "tolerations" not in pod(cpu)
    slice_of = render({"gpu": {"resource": "nvidia.com/mig-3g.40gb"}})
    assert server(slice_of)["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1


def test_the_network_policy_leaves_open_what_is_used(render: Any) -> None:
    (policy,) = [document["spec"] for (kind, _), document in render().items() if kind == "NetworkPolicy"]
    (requests,) = policy["ingress"]
    assert requests["from"] == [{"podSelector": {}}], "the same namespace, not everybody"
    assert [port["port"] for port in policy["egress"][0]["ports"]] == [53, 53, 443]
    watched = render({"monitoring": {"enabled": True}, "networkPolicy": {"egressPorts": [5432]}})
    (policy,) = [document["spec"] for (kind, _), document in watched.items() if kind == "NetworkPolicy"]
    _, scrapes = policy["ingress"]
    (peer,) = scrapes["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert [port["port"] for port in policy["egress"][0]["ports"]] == [53, 53, 5432]
    assert all(
        port["port"] == server(watched)["ports"][0]["name"] for rule in policy["ingress"] for port in rule["ports"]
    )


def test_the_autoscaler_has_the_replicas_to_itself_and_a_metric_of_the_servers(render: Any, settings: Any) -> None:
    assert "replicas" in render()["Deployment", "laplora"]["spec"]
    documents = render({"autoscaling": {"enabled": True}})
    assert "replicas" not in documents["Deployment", "laplora"]["spec"], "an upgrade would set them back"
    (metric,) = documents["HorizontalPodAutoscaler", "laplora"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name == "laplora_queue_tokens"
    assert name in {family.name for family in Metrics().registry.collect()}
    assert int(metric["pods"]["target"]["averageValue"]) < settings().max_queue_tokens / 2, (
        "before requests are refused"
    )
    (rule,) = yaml.safe_load((ROOT / "docker/kubernetes/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"] == {"as": name}
    assert rule["seriesQuery"].startswith(f"{name}{{")
