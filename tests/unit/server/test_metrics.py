"""What Prometheus reads: names, fixed labels, and a dashboard that asks for nothing else."""

import asyncio
import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gemworks.engine.live import EngineStats
from gemworks.server.metrics import Metrics
from gemworks.server.record import Record
from gemworks.server.services import Services
from gemworks.server.settings import LogSettings, ModelSettings, Settings


@pytest.fixture
def services(tmp_path):
    made = Services(
        Settings(
            models=ModelSettings(names=("tiny", "gemma3:1b")),
            usage_file=tmp_path / "usage.sqlite",
            logs=LogSettings(file=tmp_path / "log"),
        )
    )
    yield made
    made.close()


def samples(metrics: Metrics) -> dict[tuple[str, tuple], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def ended(**fields) -> Record:
    return Record(id="r", method="POST", path="/x", **fields)


def test_requests_are_counted_by_route_status_and_model(services):
    services.finished(ended(route="/v1/chat/completions", call="chat", status=200, model="tiny", outcome="done"))
    services.finished(ended(status=404))
    services.finished(ended(route="/v1/chat/completions", outcome="cancelled", model="other"))
    found = samples(services.metrics)
    name = "gemworks_requests_total"
    assert found[name, (("model", "tiny"), ("route", "/v1/chat/completions"), ("status", "200"))] == 1
    assert found[name, (("model", ""), ("route", "other"), ("status", "404"))] == 1
    assert found[name, (("model", "other"), ("route", "/v1/chat/completions"), ("status", "499"))] == 1
    assert found["gemworks_cancelled_total", ()] == 1


@pytest.mark.parametrize("model", ["tiny", "gemma3:1b", None, "", "x", "tiny\n", "other", "a" * 10_000])
def test_no_model_makes_a_label_of_its_own(services, model):
    assert services.metrics.label(model) == {"gemma3:1b": "gemma3:1b", "tiny": "tiny", None: "tiny", "": "tiny"}.get(
        model, "other"
    )


@given(st.lists(st.tuples(st.floats(0, 4, allow_nan=False), st.integers(1, 5)), max_size=30))
def test_times_between_tokens_are_a_histogram(observed):
    """Against counting each bucket anew."""
    metrics = Metrics(["tiny"])
    for seconds, count in observed:
        metrics.of("tiny").inter_token(seconds, count)
    found = samples(metrics)
    name, total = "gemworks_inter_token_seconds", 0
    for (sample, labels), value in found.items():
        if sample == f"{name}_bucket" and dict(labels)["model"] == "tiny":
            bound = float(dict(labels)["le"])
            assert value == sum(count for seconds, count in observed if seconds <= bound), bound
            total = max(total, value)
    assert total == found[f"{name}_count", (("model", "tiny"),)] == sum(count for _, count in observed)
    assert math.isclose(
        found[f"{name}_sum", (("model", "tiny"),)], sum(seconds * count for seconds, count in observed), abs_tol=1e-9
    )


def test_what_engines_count_is_read_when_asked(services):
    stats = EngineStats(steps=5, tokens_drawn=7, preemptions=2, evictions=3, pages_free=10, pages_total=40, waiting=1)
    services.metrics.watch(lambda: [("tiny", stats), ("someone-elses", EngineStats(steps=1))])
    found, tiny = samples(services.metrics), (("model", "tiny"),)
    assert found["gemworks_engine_steps_total", tiny] == 5
    assert found["gemworks_engine_tokens_drawn_total", tiny] == 7
    assert found["gemworks_engine_preemptions_total", tiny] == 2
    assert found["gemworks_engine_evictions_total", tiny] == 3
    assert (found["gemworks_engine_kv_pages_free", tiny], found["gemworks_engine_kv_pages", tiny]) == (10, 40)
    assert found["gemworks_engine_steps_total", (("model", "other"),)] == 1
    stats.steps = 6
    assert samples(services.metrics)["gemworks_engine_steps_total", tiny] == 6


def test_every_field_that_is_exported_is_one_of_the_engine():
    from gemworks.server.metrics import _COUNTERS, _GAUGES

    known = set(EngineStats.__dataclass_fields__)
    assert {*_COUNTERS, *_GAUGES} <= known
    assert known - {*_COUNTERS, *_GAUGES} <= {"requests", "rows_decoded", "host_s", "wait_s"}


def exported(services) -> set[str]:
    """Names that a query may use: those of samples, with the labels that each has."""
    services.metrics.watch(lambda: [("tiny", EngineStats())])
    services.finished(ended(route="/v1/chat/completions", call="chat", status=200, model="tiny", outcome="done"))
    return {name for name, _ in samples(services.metrics)}


def queries(dashboard: dict) -> list[str]:
    found = []
    for panel in dashboard["panels"]:
        found += [target["expr"] for target in panel.get("targets", [])]
        found += queries({"panels": panel.get("panels", [])})
    return found


def test_the_dashboard_asks_for_exported_metrics_and_labels_only(services, repo_root):
    dashboard = json.loads((repo_root / "deploy" / "grafana" / "gemworks.json").read_text())
    names, asked = exported(services), queries(dashboard)
    labels = {name: {label for label, _ in pairs} for name, pairs in samples(services.metrics)}
    variables = [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    assert len(asked) >= 12 and variables
    for expression in [*asked, *variables]:
        used = re.findall(r"\b(?:gemworks|process|python)_[a-z_]+\b", expression)
        assert used, expression
        for name in used:
            assert name in names, f"{name} in {expression}"
        for name, selector in re.findall(r"\b(gemworks_[a-z_]+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                assert label in labels[name] | {"instance", "job"}, f"{label} in {expression}"
        for group in re.findall(r"by \(([^)]*)\)", expression):
            for label in group.split(","):
                assert any(label.strip() in labels[name] | {"instance"} for name in used), f"{label} in {expression}"


def test_every_metric_of_the_docs_is_exported_and_every_exported_one_is_in_the_docs(services, repo_root):
    page = (repo_root / "docs" / "serve.md").read_text()
    told = set(re.findall(r"^\| `(gemworks_[a-z_]+)", page, flags=re.M))
    families = {
        re.sub(r"_(bucket|count|sum)$", "", name) if not name.endswith("_total") else name
        for name in exported(services)
        if name.startswith("gemworks_")
    }
    assert told == families


def test_readiness_says_loading_ready_draining_and_what_is_wrong(services):
    from gemworks.server import health

    request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(services=services)))

    def ask(route):
        answer = asyncio.run(health.live() if route is health.live else route(request))
        return answer.status_code, json.loads(answer.body)

    assert ask(health.live) == (200, {"status": "live"})
    status, told = ask(health.ready)
    assert (status, told["status"]) == (503, "loading")
    services.is_ready = True
    services.usage.problem = "usage cannot be written"
    assert ask(health.ready) == (
        200,
        {"status": "ready", "waiting": 0, "running": 0, "problems": {"usage": "usage cannot be written"}},
    )
    services.calls.drain()
    status, told = ask(health.ready)
    assert (status, told["status"]) == (503, "draining") and ask(health.live)[0] == 200


def test_metrics_can_be_switched_off(services):
    from gemworks.server import health
    from gemworks.server.settings import MetricsSettings

    request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(services=services)))
    assert asyncio.run(health.metrics(request)).body.startswith(b"# HELP")
    services.settings = dataclasses.replace(services.settings, metrics=MetricsSettings(enabled=False))
    assert asyncio.run(health.metrics(request)).status_code == 404
