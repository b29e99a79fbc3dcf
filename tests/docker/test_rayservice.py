"""The RayService: its pods fit Kubernetes' schemas, its Serve configuration Ray's own, and its arguments our builder.

KubeRay's definition (1.7.0) has been held against it by hand; here stand the fields that were then used.
"""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from test_docker import environment, parse

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker" / "kubernetes" / "rayservice.yaml"
DOCUMENT: dict[str, Any]
DOCUMENT, POLICY, BUDGET = yaml.safe_load_all(FILE.read_text(encoding="utf-8"))
SPEC: dict[str, Any] = DOCUMENT["spec"]
CLUSTER: dict[str, Any] = SPEC["rayClusterConfig"]
PODS = {
    group.get("groupName", "head"): group["template"]
    for group in [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
}
WORKERS = [name for name in PODS if name != "head"]


def container(name: str) -> dict[str, Any]:
    """Return the one container of a group's pods."""
    (found,) = PODS[name]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("version", ["1.27", "1.37"], ids=["oldest", "newest"])
def test_kubernetes_schemas_take_its_pods_and_what_stands_beside_them(version: str) -> None:
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **pod} for name, pod in PODS.items()]
    for document in (*pods, POLICY, BUDGET):
        assert kubernetes_validate.validate(document, version, strict=True) == version


# Ray's own models use what pydantic is about to leave.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_ray_takes_its_serve_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(SPEC["serveConfigV2"]))
    (application,) = deployed.applications
    assert application.route_prefix == "/"
    assert deployed.http_options.host == "0.0.0.0"
    for name in WORKERS:
        ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
        assert ports == {"serve": deployed.http_options.port}, "KubeRay's Service looks for this name"
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert CLUSTER["rayVersion"] == pinned, "the cluster runs the Ray that is tested"


def test_a_pod_has_the_time_that_its_replica_takes_to_leave() -> None:
    settings = Settings(**yaml.safe_load(SPEC["serveConfigV2"])["applications"][0]["args"]["settings"])
    for name in WORKERS:
        assert PODS[name]["spec"]["terminationGracePeriodSeconds"] > settings.request_timeout_s + settings.drain_s
    assert SPEC["rayClusterDeletionDelaySeconds"] > settings.request_timeout_s + settings.drain_s
    # Nor is the ingress evicted in passing.
    assert BUDGET["spec"]["maxUnavailable"] == 0
    selector = BUDGET["spec"]["selector"]["matchLabels"]
    assert selector["ray.io/group"] in WORKERS
    assert PODS["ingress"]["metadata"]["labels"]["app.kubernetes.io/name"] == selector["app.kubernetes.io/name"]


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_the_image_without_rights(name: str) -> None:
    spec, image = PODS[name]["spec"], parse("service.Dockerfile")[1][-1]
    user, group = image.one("USER").split(":")
    context = spec["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (int(user), int(group), True)
    assert container(name)["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["enableServiceLinks"] is False, "a Service of the name laplora would set LAPLORA_PORT"
    variables = {entry["name"]: entry["value"] for entry in container(name)["env"]}
    assert variables["PYTHONPATH"] == image.one("WORKDIR"), "where the package service is"
    mounts = {mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert str(Path(variables["LAPLORA_KEYS"]).parent) in mounts
    assert {environment(image)["HOME"], "/tmp", "/dev/shm"} <= mounts
    assert {mount["name"] for mount in container(name)["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_scorers_have_a_gpu_and_the_ingress_has_none() -> None:
    args = yaml.safe_load(SPEC["serveConfigV2"])["applications"][0]["args"]
    assert container("scorers")["resources"]["limits"]["nvidia.com/gpu"] == args["scorer_gpus"]
    assert "nvidia.com/gpu" not in container("ingress")["resources"]["limits"]
    (scorers,) = [group for group in CLUSTER["workerGroupSpecs"] if group["groupName"] == "scorers"]
    assert (scorers["minReplicas"], scorers["maxReplicas"]) == (args["scorers"], args["max_scorers"])
    assert int(container("scorers")["resources"]["requests"]["cpu"]) >= args["scorer_cpus"]
    assert CLUSTER["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_rays_own_ports_are_closed() -> None:
    """Whoever reaches the dashboard or the client's port runs any program."""
    assert CLUSTER["authOptions"] == {"mode": "token"}
    labels = POLICY["spec"]["podSelector"]["matchLabels"]
    for pod in PODS.values():
        assert labels.items() <= pod["metadata"]["labels"].items(), "the policy holds for every pod"
    itself, operator, requests = POLICY["spec"]["ingress"]
    assert itself == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert [port["port"] for port in operator["ports"]] == [8265, 8000]
    assert operator["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}
    ]
    assert [port["port"] for port in requests["ports"]] == [8000]
    assert requests["from"] == [{"podSelector": {}}]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_the_builder_takes_its_arguments_as_ray_hands_them_over() -> None:
    """From a file they come as a mapping; a name or a form that the builder does not know is refused."""
    from ray.serve import Application
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built

    (application,) = yaml.safe_load(SPEC["serveConfigV2"])["applications"]
    builder = pkgutil.resolve_name(application["import_path"])
    assert isinstance(built(builder, application["args"]), Application)
    with pytest.raises(ValidationError, match="scorer_gpu\n"):
        built(builder, application["args"] | {"scorer_gpu": 1})
