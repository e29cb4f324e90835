"""What stands in cluster.yaml and deploy/ is what Ray, Kubernetes and Prometheus take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline import __version__
from pipeline.recipe import load_recipe
from tests.conftest import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUBERNETES = ROOT / "deploy/kubernetes"
VERSION = "1.31"
POD_TEMPLATE = {"type": "object"}  # judged as a Pod
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": POD_TEMPLATE,
}
COUNT = {"type": "integer", "minimum": 0}


def shape(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


CLUSTER = shape(
    {
        "rayVersion": {"type": "string"},
        "authOptions": shape({"mode": {"enum": ["token", "disabled"]}, "secretName": {"type": "string"}}, "mode"),
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": shape(
            {
                "idleTimeoutSeconds": COUNT,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "resources": {"type": "object"},
                "securityContext": {"type": "object"},
            }
        ),
        "headGroupSpec": shape(GROUP, "template"),
        "workerGroupSpecs": {
            "type": "array",
            "items": shape(
                {
                    **GROUP,
                    "groupName": {"type": "string"},
                    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT),
                },
                *("groupName", "template"),
            ),
        },
    },
    "headGroupSpec",
)
JOB = shape(
    {
        "entrypoint": {"type": "string"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": COUNT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "clusterSelector": {"type": "object"},
        "rayClusterSpec": CLUSTER,
    },
    "entrypoint",
)
RULE = shape(
    {
        **{key: {"type": "string"} for key in ("alert", "expr", "for")},
        **{key: {"type": "object"} for key in ("labels", "annotations")},
    },
    *("alert", "expr", "labels", "annotations"),
)
SPECS = {
    # KubeRay's API reference, v1; the keys that we use
    "RayCluster": CLUSTER,
    "RayJob": JOB,
    "RayCronJob": shape(
        {
            **{key: {"type": "string"} for key in ("schedule", "timeZone")},
            "suspend": {"type": "boolean"},
            "jobTemplate": JOB,
        },
        *("schedule", "jobTemplate"),
    ),
    # the Prometheus operator's
    "PodMonitor": shape(
        {
            "selector": {"type": "object"},
            "podTargetLabels": {"type": "array", "items": {"type": "string"}},
            "podMetricsEndpoints": {"type": "array", "items": {"type": "object"}},
        },
        *("selector", "podMetricsEndpoints"),
    ),
    "PrometheusRule": shape(
        {"groups": {"type": "array", "items": shape({"name": {"type": "string"}, "rules": {"items": RULE}})}}, "groups"
    ),
}


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name not in ("kustomization.yaml", "nightly.recipe.yaml"):
            for document in yaml.safe_load_all(path.read_text()):
                name = f"{path.name}-{document['kind']}"
                yield name if name not in seen else f"{name}-{document['metadata']['name']}", document
                seen.add(name)


MANIFESTS = dict(manifests())


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Pod templates, however deep."""
    if isinstance(value, list):
        for part in value:
            yield from pods(part)
    elif isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for part in value.values():
            yield from pods(part)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-local.yaml"])
def test_ray_up_takes_the_cluster(name: str) -> None:
    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    validate_config(config)
    if name == "cluster.yaml":
        types = config["available_node_types"]
        assert types["head"]["resources"]["CPU"] == 0
        assert all(types[worker]["min_workers"] == 0 for worker in ("decode", "restore"))
    head = " ".join(config["head_start_ray_commands"])
    assert "--autoscaling-config=" in head and "RAY_AUTH_MODE=token" in head, "else no worker is ever started"


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_each_manifest(name: str) -> None:
    manifest = MANIFESTS[name]
    if manifest["kind"] in SPECS:
        jsonschema.validate(manifest["spec"], SPECS[manifest["kind"]])
        metadata = manifest["metadata"]
        assert metadata.get("name") or metadata.get("generateName")
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    for template in pods(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_every_file_is_applied_or_says_when_it_is() -> None:
    applied = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    others = {path.name for path in KUBERNETES.glob("*.yaml")} - {*applied, "kustomization.yaml"}
    assert others == {"nightly-ray.yaml", "nightly.recipe.yaml", "once.yaml"}


def test_pods_ask_for_what_they_need_and_hold_no_secret() -> None:
    for name, manifest in MANIFESTS.items():
        for template in pods(manifest):
            for container in template["spec"]["containers"]:
                assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert template["spec"]["securityContext"]["runAsNonRoot"], name
                for variable in container.get("env", []):
                    assert "valueFrom" in variable or not re.search("TOKEN|KEY|SECRET", variable["name"])
    for name in ("cluster.yaml-RayCluster", "once.yaml-RayJob"):  # the operator puts a container beside the head's
        spec = MANIFESTS[name]["spec"]
        confined = spec.get("rayClusterSpec", spec)["autoscalerOptions"]["securityContext"]
        assert confined["allowPrivilegeEscalation"] is False and confined["capabilities"]["drop"] == ["ALL"]
    restoring = [
        group for group in MANIFESTS["cluster.yaml-RayCluster"]["spec"]["workerGroupSpecs"] if group["maxReplicas"]
    ]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in restoring]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "1"]


def test_who_submits_is_let_in_and_who_is_asked_for_metrics_has_the_port() -> None:
    allowed = MANIFESTS["network.yaml-NetworkPolicy"]["spec"]["ingress"]
    labels = [peer["podSelector"]["matchLabels"] for rule in allowed for peer in rule["from"]]
    night = MANIFESTS["nightly.yaml-CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert night in labels
    for name in ("once.yaml-RayJob", "nightly-ray.yaml-RayCronJob"):  # by the operator, which may
        spec = MANIFESTS[name]["spec"]
        assert spec.get("jobTemplate", spec)["submissionMode"] == "HTTPMode"
    assert {"app.kubernetes.io/name": "kuberay-operator"} in labels


def test_the_recipe_of_the_night_asks_for_the_gpus_that_there_may_be() -> None:
    recipe = load_recipe(str(KUBERNETES / "nightly.recipe.yaml"), [])
    groups = MANIFESTS["cluster.yaml-RayCluster"]["spec"]["workerGroupSpecs"]
    assert recipe.restoration.device == "cuda"
    assert recipe.resources.actors == groups[1]["maxReplicas"]


def test_the_autoscaler_has_an_account_that_may_talk_to_kubernetes() -> None:
    accounts = {
        document["metadata"]["name"]: document
        for document in yaml.safe_load_all((KUBERNETES / "account.yaml").read_text())
    }
    for name in ("cluster.yaml-RayCluster", "once.yaml-RayJob"):
        spec = MANIFESTS[name]["spec"]
        head = spec.get("rayClusterSpec", spec)["headGroupSpec"]["template"]["spec"]
        assert accounts[head["serviceAccountName"]].get("automountServiceAccountToken", True)
    used = {template["spec"]["serviceAccountName"] for manifest in MANIFESTS.values() for template in pods(manifest)}
    assert used == set(accounts)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"ray_conservator_\w+", (KUBERNETES / "monitoring.yaml").read_text()))
    source = (ROOT / "pipeline/metrics.py").read_text()
    there = {f"ray_{name}_total" for name in re.findall(r'Counter\(\s*"(\w+)"', source)}
    there |= {f"ray_{name}" for name in re.findall(r'[Gg]auge\(\s*"(\w+)"', source)}
    assert asked and asked <= there


def test_images_have_a_tag_of_this_version() -> None:
    (image,) = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    once = {
        container["image"] for pod in pods(MANIFESTS["once.yaml-RayJob"]) for container in pod["spec"]["containers"]
    }
    assert once == {f"conservator:{image['newTag']}"} == {f"conservator:{__version__}-cuda"}


@pytest.mark.parametrize(
    ("codes", "ends"), [([0], 0), ([4], 4), ([75, 3], 3), ([75, 75, 0], 0), ([75, 75, 75, 75], 75), ([2], 2)]
)
@pytest.mark.parametrize("name", ["once.yaml-RayJob", "nightly-ray.yaml-RayCronJob"])
def test_an_entrypoint_tries_again_what_may_work_later(name: str, codes: list[int], ends: int, tmp_path: Path) -> None:
    spec = MANIFESTS[name]["spec"]
    for command, script in {
        "conservator": f"n=$(cat {tmp_path}/n); echo $((n+1)) > {tmp_path}/n; set -- {' '.join(map(str, codes))}; "
        "shift $n; exit $1",
        "sleep": "exit 0",
    }.items():
        (tmp_path / command).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / command).chmod(0o755)
    (tmp_path / "n").write_text("0")
    entrypoint = spec.get("jobTemplate", spec)["entrypoint"]
    done = subprocess.run(["/bin/sh", "-c", entrypoint], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode == (0 if ends == 4 and "nightly" in name else ends)
    assert (tmp_path / "n").read_text().strip() == str(len(codes))


CLUSTER_LABEL = 'ray_io_cluster="archive",run_id="r1"'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's prometheus, is not installed")
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(MANIFESTS["monitoring.yaml-PrometheusRule"]["spec"]))

    def series(name: str, values: str, labels: str = "") -> dict[str, str]:
        return {"series": f"ray_conservator_{name}{{{CLUSTER_LABEL}{labels}}}", "values": values}

    def case(fires: str | None, *told: dict[str, str], share: str = "10%") -> dict[str, Any]:
        names = ["ConservatorRowsFail", "ConservatorStalls", "ConservatorLeaseRunsOut"]
        severity = {"ConservatorRowsFail": "warning"}
        said = MANIFESTS["monitoring.yaml-PrometheusRule"]["spec"]["groups"][0]["rules"]
        tests = []
        for name in names:
            expected: dict[str, Any] = {"alertname": name, "eval_time": "70m", "exp_alerts": []}
            if name == fires:
                (rule,) = (rule for rule in said if rule["alert"] == name)
                notes = {
                    key: text.replace("{{ $value }}", "500")
                    .replace("{{ $value | humanizePercentage }}", share)
                    .replace("{{ $labels.run_id }}", "r1")
                    for key, text in rule["annotations"].items()
                }
                labels = {"severity": severity.get(name, "critical"), "ray_io_cluster": "archive", "run_id": "r1"}
                expected["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": notes}]
            tests.append(expected)
        return {"interval": "1m", "input_series": list(told), "alert_rule_test": tests}

    good = series("run_rows", "0+90x80", ',status="restored"')
    left, held = series("run_rows_left", "500x80"), series("lease_left_share", "0.9x80")
    cases = [
        case(None, good, series("run_rows", "0+2x80", ',status="failed"'), left, held),
        case("ConservatorRowsFail", good, series("run_rows", "0+10x80", ',status="failed"'), left, held),
        # rights that run out after a long good while: 20 of the last 200 rows, of 2,000
        case(
            "ConservatorRowsFail",
            series("run_rows", "1800+6x80", ',status="restored"'),
            series("run_rows", "0x40 0.66+0.66667x39", ',status="failed"'),
            left,
            held,
            share="9.997%",
        ),
        case("ConservatorStalls", series("run_rows", "90x80", ',status="restored"'), left, held),
        case(None, series("run_rows", "90x80", ',status="restored"'), series("run_rows_left", "0x80"), held),
        # the job ends as its lease does: what it said last is all that is heard of it
        case("ConservatorLeaseRunsOut", good, left, series("lease_left_share", "0.9x66 0.1 stale")),
    ]
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
