"""What a pod of the chart is told, against what the image and the server say of themselves."""

from __future__ import annotations

import http.server
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import psycopg
import pytest
import yaml
from documents import read
from postgres import GUEST, postgres
from server_process import until
from test_docker import compose, environment, parse, seconds, settings_of

from benchmarks.harness.provenance import ARTIFACT
from service.app import create_app
from service.errors import JobsUnavailableError
from service.jobs.store.database import Database
from service.settings import Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
IMAGE = environment(parse("service.Dockerfile")[1][-1])
VALUES, SEVERAL, ONE = (
    yaml.safe_load(read(f"docker/kubernetes/laplora/{name}.yaml"))
    for name in ("values", "ci/several-values", "ci/one-values")
)
JOBS = "postgresql://laplora@database/laplora"


def pod(documents: Any) -> dict[str, Any]:
    """Return the Deployment's pod specification."""
    return documents["Deployment", "laplora"]["spec"]["template"]["spec"]


def server(documents: Any) -> dict[str, Any]:
    """Return the server's container."""
    (container,) = [one for one in pod(documents)["containers"] if one["name"] == "server"]
    return dict(container)


def variables(documents: Any) -> dict[str, str]:
    """Return the environment that the image and the pod make together."""
    return IMAGE | {entry["name"]: entry["value"] for entry in server(documents)["env"] if "value" in entry}


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
        artifact={"name": "s3://models/reviews", "claim": "artifacts", "readOnly": False},
        keys={"secret": ""},
        drain={"delaySeconds": 7, "seconds": 60},
        settings={"max_kept_job_bytes": 8589934592, "client_share": 0.25, "conditioning": True, "log_format": "text"},
    )
    service = ("laplora", "laplora.default", "laplora.default.svc", "laplora.default.svc.cluster.local")
    assert chosen.allowed_hosts == service
    outside = {"allowed_hosts": "laplora.example,box"}
    routes = {"ingress": {"enabled": True, "hosts": ["*.b.example", "a.example"]}, "settings": outside}
    assert settings(keys={"secret": "", "exposedWithoutKeys": True}, **routes).allowed_hosts == (
        *service,
        "a.example",
        "laplora.example",
        "box",
    )
    assert (chosen.device, chosen.artifact, chosen.auth) == ("cpu", "s3://models/reviews", "off")
    assert (chosen.drain_delay_s, chosen.drain_s) == (7, 60)
    assert (chosen.max_kept_job_bytes, chosen.client_share) == (8589934592, 0.25)
    assert (chosen.conditioning, chosen.log_format) == (True, "text")


def test_no_value_of_the_chart_is_also_a_setting(render: Callable[..., Any], helm: Any) -> None:
    """What the chart sets itself cannot be set twice: the later line would win without a word."""
    shown = variables(render({"gpu": {"count": 2}, "jobs": {"url": JOBS, "passwordSecret": "jobs"}}))
    ours = {name.removeprefix("LAPLORA_").lower() for name in shown if name.startswith("LAPLORA_")}
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
def test_times_are_those_of_the_page_and_their_sums_hold(render: Any, settings: Any, drain: dict[str, int]) -> None:
    documents, given, values = render({"drain": drain}), settings(drain=drain), VALUES["drain"] | drain
    container, composed = server(documents), compose()["services"]["gpu"]
    assert (given.drain_delay_s, given.drain_s) == (values["delaySeconds"], values["seconds"])
    slept = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0, 0])[1]
    proxy = compose("compose.proxy.yaml")["services"]["proxy"]["environment"]
    nginx = read("docker/nginx.conf.template").partition("keepalive 32;")[2]
    times = {name: field.default for name, field in Settings.model_fields.items()} | proxy
    for probe in (container[f"{kind}Probe"] | {"kind": kind} for kind in ("startup", "liveness", "readiness")):
        times[f"{probe['kind']}Probe"] = probe["periodSeconds"] * probe["failureThreshold"]
    times |= {f"drain.{name}": value for name, value in values.items()} | composed["environment"]
    times |= {
        "drain.preStopSeconds": slept,
        "hang_s": given.run_limit_s,
        "httpRoute.timeout": seconds(VALUES["httpRoute"]["timeout"]),
        "keepalive_timeout": nginx.partition("keepalive_timeout ")[2].partition("s;")[0],
        "startSeconds": documents["Deployment", "laplora"]["spec"]["progressDeadlineSeconds"],
        "stop_grace_period": seconds(composed["stop_grace_period"]),
        "terminationGracePeriodSeconds": pod(documents)["terminationGracePeriodSeconds"],
    }
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| (\d+) \|(.*)\|$", read("docs/kubernetes.md"), re.M)
    assert len(rows) == 20
    for name, told, least in rows:
        assert drain or float(times[name]) == float(told), name
        terms = re.findall(r"`([\w.]+)`", least)
        assert not terms or float(times[name]) > sum(float(times[term]) for term in terms), name
    assert pod(render({"settings": {"leave_s": 1.5}}))["terminationGracePeriodSeconds"] == 15 + 125 + 2 + 6
    assert (
        SEVERAL["ingress"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
        == proxy["PROXY_ANSWER_TIMEOUT_S"]
    )


@pytest.mark.parametrize(
    "values",
    [
        {"jobs": {"url": JOBS, "passwordSecret": "jobs", "ca": {"secret": "authorities"}}},
        {"cache": {"baked": True}},
        {"cache": {"claim": "models"}, "artifact": {"claim": "artifacts"}},
    ],
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
    cache, env = values.get("cache", {}), variables(documents)
    assert is_writable(given.cache) == (not cache.get("baked")), "a volume would hide what is baked"
    assert ("HF_HUB_OFFLINE" in env, "PIP_NO_INDEX" in env) == (cache.get("baked", False),) * 2
    hub = PurePosixPath(env.get("HF_HOME", env["HOME"]))
    assert hub.is_relative_to(given.cache) == ("claim" in cache), "one pod fetches for all"
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


def test_gpus_are_asked_for_where_they_are_used(render: Any, settings: Any) -> None:
    gpu, cpu = render(), render({"device": "cpu"})
    assert server(gpu)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {toleration["key"] for toleration in pod(gpu)["tolerations"]} == {"nvidia.com/gpu"}
    assert "nvidia.com/gpu" not in server(cpu)["resources"]["limits"]
    assert "tolerations" not in pod(cpu)
    slice_of = render({"gpu": {"resource": "nvidia.com/mig-3g.40gb"}})
    assert server(slice_of)["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    several = settings(gpu={"count": 4, "deviceMap": '{"": 0}'})
    assert (several.device, several.device_map, settings().device_map) == ("auto", '{"": 0}', None)
    assert server(render({"gpu": {"count": 4}}))["resources"]["limits"]["nvidia.com/gpu"] == 4


@pytest.mark.parametrize("values", [{}, SEVERAL, ONE], ids=["default", "several", "one"])
def test_the_chart_s_own_test_asks_the_service_and_is_no_server(render: Any, values: dict[str, Any]) -> None:
    documents = render(values)
    asking, service = documents["Pod", "laplora-test"], documents["Service", "laplora"]["spec"]
    (container,) = asking["spec"]["containers"]
    assert container["command"][-1] == f"http://laplora:{service['ports'][0]['port']}/health/ready"
    assert container["image"] == server(documents)["image"]
    assert all(asking["spec"].get(name) == pod(documents).get(name) for name in ("nodeSelector", "tolerations"))
    labels = asking["metadata"]["labels"]
    assert not service["selector"].items() <= labels.items()
    (policy,) = [document["spec"] for (kind, _), document in documents.items() if kind == "NetworkPolicy"]
    assert policy["ingress"][0]["from"][1]["podSelector"]["matchLabels"].items() <= labels.items()
    # Its command is run here against a port where nobody listens, and one where somebody does.
    with socketserver.TCPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as asked:
        threading.Thread(target=asked.handle_request, daemon=True).start()
        command = [sys.executable, *container["command"][1:-1], f"http://127.0.0.1:{asked.server_address[1]}/"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_network_policy_leaves_open_what_is_used(render: Any) -> None:
    (policy,) = [document["spec"] for (kind, _), document in render().items() if kind == "NetworkPolicy"]
    (requests,) = policy["ingress"]
    assert requests["from"][0] == {"podSelector": {}}, "the same namespace, not everybody"
    assert [port["port"] for port in policy["egress"][0]["ports"]] == [53, 53, 443]
    route = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}, {"name": "b", "namespace": "gateways"}]}}
    route |= {"jobs": {"url": JOBS}, "settings": {"otlp_endpoint": "http://c:4318/v1", "upstream_url": "https://m"}}
    watched = render({"monitoring": {"enabled": True}, "networkPolicy": {"egressPorts": [80]}, **route})
    (policy,) = [document["spec"] for (kind, _), document in watched.items() if kind == "NetworkPolicy"]
    peers = [peer["namespaceSelector"]["matchLabels"] for rule in policy["ingress"][1:] for peer in rule["from"]]
    assert peers == [{"kubernetes.io/metadata.name": name} for name in ("ingress-nginx", "gateways", "monitoring")]
    assert [port["port"] for port in policy["egress"][0]["ports"]] == [53, 53, 80, 5432, 4318, 443]
    (policy,) = [document["spec"] for (kind, _), document in render(SEVERAL).items() if kind == "NetworkPolicy"]
    assert policy["egress"][1:] == SEVERAL["networkPolicy"]["egress"]
    assert all(
        port["port"] == server(watched)["ports"][0]["name"] for rule in policy["ingress"] for port in rule["ports"]
    )


def test_the_autoscaler_has_the_replicas_to_itself_and_a_metric_of_the_servers(render: Any, settings: Any) -> None:
    assert "replicas" in render()["Deployment", "laplora"]["spec"]
    assert "replicas" not in render({"replicas": None})["Deployment", "laplora"]["spec"], "another autoscaler's"
    documents = render({"autoscaling": {"enabled": True}})
    assert "replicas" not in documents["Deployment", "laplora"]["spec"], "an upgrade would set them back"
    (metric,) = documents["HorizontalPodAutoscaler", "laplora"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name == "laplora_queue_tokens"
    assert name in {family.name for family in Metrics().registry.collect()}
    assert int(metric["pods"]["target"]["averageValue"]) < settings().queue_limits(0)[1] / 2, "before refusals"
    (rule,) = yaml.safe_load((ROOT / "docker/kubernetes/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"] == {"as": name}
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_the_jobs_database_is_reached_by_its_certificate_and_a_password_from_a_secret(
    render: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A real PostgreSQL with a certificate of its own; the pod's mounts are folders here."""
    authorities, other, word = tmp_path / "ca.crt", tmp_path / "other.crt", tmp_path / "password"
    for file in (authorities, other):
        made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        command = f"{made} -addext subjectAltName=DNS:localhost -keyout {file}.key -out {file}".split()
        subprocess.run(command, check=True, capture_output=True)
    with postgres() as address, psycopg.connect(address, autocommit=True) as admin:
        (data,) = admin.execute("SHOW data_directory").fetchone()  # type: ignore[misc]
        for name, file in (("server.crt", authorities), ("server.key", Path(f"{authorities}.key"))):
            shutil.copy(file, Path(data) / name)
            (Path(data) / name).chmod(0o600)
            shutil.chown(Path(data) / name, Path(data).owner())
        admin.execute(f"CREATE ROLE {GUEST} LOGIN SUPERUSER PASSWORD 'of a secret'")
        admin.execute("ALTER SYSTEM SET ssl = on")
        admin.execute("SELECT pg_reload_conf()")
        word.write_text("of a secret\n")
        url = address.replace("laplora@127.0.0.1", f"{GUEST}@localhost")
        values = {"jobs": {"url": url, "passwordSecret": "jobs", "ca": {"secret": "authorities"}}}
        documents = render(values)
        told, given = variables(documents), settings_of(variables(documents), monkeypatch)
        mounts = {mount["mountPath"] for mount in server(documents)["volumeMounts"]}
        assert {str(given.jobs_password_file.parent), str(Path(told["PGSSLROOTCERT"]).parent)} <= mounts
        monkeypatch.setenv("PGSSLMODE", told["PGSSLMODE"])
        monkeypatch.setenv("PGSSLROOTCERT", str(authorities))
        until(lambda: admin.execute("SHOW ssl").fetchone() == ("on",))
        opened = Database.at_url(given.jobs_url.get_secret_value(), word)
        with opened.transaction() as db:
            assert db.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar()
        opened.close()
        with pytest.raises(JobsUnavailableError):  # not the name in the certificate
            Database.at_url(url.replace("localhost", "127.0.0.1"), word)
        public = variables(render({"jobs": {"url": url}}))["PGSSLROOTCERT"]
        for unknown in (str(other), public):
            monkeypatch.setenv("PGSSLROOTCERT", unknown)
            with pytest.raises(JobsUnavailableError):
                Database.at_url(url, word)
        unchecked = variables(render({"jobs": {"url": url, "sslmode": "require"}}))
        assert "PGSSLROOTCERT" not in unchecked  # with it, PostgreSQL's client checks certificates under require too
        monkeypatch.delenv("PGSSLROOTCERT")
        monkeypatch.setenv("PGSSLMODE", unchecked["PGSSLMODE"])
        Database.at_url(url, word).close()
