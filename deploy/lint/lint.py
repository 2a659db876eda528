"""Checks the files in deploy/, packaging/, docker-compose.yml and Dockerfile with the tools made for each.

Run by `make lint-deploy`, which installs requirements.txt into target/lint. A tool that pip cannot install is used when
it is there, and named at the end when it is not. Whether the files agree with the program is tested by tests/it/deploy.rs.
"""

import glob
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import helm_python as helm

HERE = pathlib.Path(__file__).parent
CHART = "deploy/helm/pgoutbox"
MANIFESTS = sorted(set(glob.glob("deploy/kubernetes/*.yaml")) - {"deploy/kubernetes/kustomization.yaml"})
# The oldest version that the chart allows, and the newest that the schemas know.
KUBERNETES = ["1.25.0", "1.37.0"]
# Values that turn on what is off by default.
EVERYTHING = {
    "metrics": {"secret": "pgoutbox-metrics"},
    "subscriptions": {"secret": "pgoutbox-subscriptions"},
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "PGOUTBOX__EGRESS__CA_FILE", "value": "/run/secrets/authorities/ca.pem"}],
    "extraVolumes": [{"name": "authorities", "secret": {"secretName": "authorities"}}],
    "extraVolumeMounts": [{"name": "authorities", "mountPath": "/run/secrets/authorities", "readOnly": True}],
    "podAnnotations": {"example": "1"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "relays", "operator": "Exists"}],
    "probes": {"address": "::"},
}
NOTHING = {"migrate": {"enabled": False}, "podDisruptionBudget": {}, "config": ""}
# What the schema of the values must refuse.
WRONG = [{"replica": 2}, {"drainSeconds": "20s"}, {"environment": "a b"}, {"database": {"secret": ""}}]

failed, missing = [], []


def tool(name):
    """Path of a program that pip has installed."""
    return os.path.join(os.path.dirname(sys.executable), name)


def check(what, command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{'ok    ' if done.returncode == 0 else 'FAILED'}  {what}")
    if done.returncode != 0:
        print(done.stdout)
        failed.append(what)


def where_there(what, program, command, answers=None):
    """Checks with a program that pip does not install."""
    there = shutil.which(program) is not None
    if there and answers:
        there = subprocess.run(answers, capture_output=True).returncode == 0
    if there:
        check(what, command)
    else:
        print(f"NOT CHECKED  {what}: {' '.join(command[:2])} is not installed")
        missing.append(what)


def chart():
    """helm lint, and each way to render the chart as manifests that the schemas of Kubernetes accept."""
    report = helm.lint(CHART, strict=True)
    for message in report["messages"]:
        if message["severity"] > 1:
            report["errors"].append(message["error"])
    print(f"{'FAILED' if report['errors'] else 'ok    '}  helm lint")
    if report["errors"]:
        print("\n".join(report["errors"]))
        failed.append("helm lint")
    for name, values in {"default": {}, "everything": EVERYTHING, "nothing": NOTHING}.items():
        with tempfile.TemporaryDirectory() as folder, helm.Chart.load(CHART) as loaded:
            for path, text in loaded.render(values, name="shop", namespace="shop").items():
                if path.endswith(".yaml") and text.strip():
                    pathlib.Path(folder, os.path.basename(path)).write_text(text, encoding="utf-8")
            rendered = sorted(glob.glob(f"{folder}/*.yaml"))
            assert len(rendered) >= 3, rendered
            for version in KUBERNETES:
                command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, *rendered]
                check(f"chart with {name} values against Kubernetes {version}", command)
    for values in WRONG:
        with helm.Chart.load(CHART) as loaded:
            try:
                loaded.validate_schema(loaded.merge_values(values))
            except helm.HelmError:
                continue
        print(f"FAILED  values.schema.json accepts {values}")
        failed.append(f"values {values}")


def main():
    plain = [f"{CHART}/Chart.yaml", f"{CHART}/values.yaml", "docker-compose.yml", "deploy/kubernetes", "deploy/lint"]
    check("yamllint", [tool("yamllint"), "--strict", "--config-file", str(HERE / "yamllint.yaml"), *plain])
    check("hadolint", [tool("hadolint"), "--config", str(HERE / "hadolint.yaml"), "Dockerfile"])
    check("shellcheck", [tool("shellcheck"), "packaging/prepare.sh", "packaging/deb/postinst"])
    compose = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    check("docker-compose.yml against the schema of compose files", compose)
    for version in KUBERNETES:
        command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, *MANIFESTS]
        check(f"manifests against Kubernetes {version}", command)
    chart()
    where_there("kustomization", "kubectl", ["kubectl", "kustomize", "deploy/kubernetes"])
    docker = ["docker", "compose", "--profile", "sinks", "config", "--quiet"]
    where_there("docker compose config", "docker", docker, ["docker", "compose", "version"])
    where_there("helm template", "helm", ["helm", "template", "shop", CHART])
    if missing:
        print(f"not checked, because the tool is not installed: {', '.join(missing)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


main()
