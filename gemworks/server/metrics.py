"""What Prometheus reads at /metrics. Labels have fixed lists of values: routes, statuses and the models served.

prometheus_client keeps the counts. A model's children are looked up once a call, so that a token costs one observation.
What the engines count is read from them when somebody asks.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from gemworks.server.record import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"

# Seconds. Up to a minute for whole requests and first tokens; tokens come every 1 to 500 ms on what Gemma 3 runs on.
_REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)

REASONS = ("key", "tokens", "queue", "draining")


class TokenTimes:
    """Times between tokens of one model. One thread writes, so it needs no lock: 0.4 us an observation, not 1.5."""

    def __init__(self):
        self.counts = [0] * (len(_TOKEN_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, count: int) -> None:
        """Count `count` tokens that each took `seconds`."""
        self.counts[bisect_left(_TOKEN_S, seconds)] += count
        self.sum_s += seconds * count


class ModelMetrics:
    """The children of one model."""

    __slots__ = ("_first", "_refused", "_tokens", "inter_token")

    def __init__(self, metrics: "Metrics", model: str):
        self._first = metrics.first_token_s.labels(model)
        self._refused = {reason: metrics.refused.labels(reason) for reason in REASONS}
        self._tokens = {kind: metrics.tokens.labels(kind, model) for kind in ("prompt", "cached", "completion")}
        self.inter_token = metrics.token_times[model].add

    def first_token(self, seconds: float) -> None:
        """Note the time from a request's arrival to its first token."""
        self._first.observe(seconds)

    def refused(self, reason: str) -> None:
        """Note that a call was refused."""
        self._refused[reason].inc()

    def ended(self, record: "Record") -> None:
        """Count a call's tokens."""
        self._tokens["prompt"].inc(record.prompt_tokens)
        self._tokens["cached"].inc(record.cached_tokens)
        self._tokens["completion"].inc(record.completion_tokens)


class Metrics:
    """All metrics of a server. models: the label's values; every other model is "other"."""

    def __init__(self, models: Sequence[str]):
        disable_created_metrics()  # when a counter was made, one line more for each
        self.registry = CollectorRegistry()
        self._models = tuple(models)
        self.token_times = {model: TokenTimes() for model in (*models, OTHER)}

        def make(kind: Any, name: str, help: str, labels: Sequence[str] = (), **more: Any) -> Any:
            return kind(f"gemworks_{name}", help, labels, registry=self.registry, **more)

        self.requests = make(Counter, "requests", "HTTP requests answered", ("route", "status", "model"))
        self.request_s = make(
            Histogram, "request_seconds", "Arrival to the end of the answer", ("route", "model"), buckets=_REQUEST_S
        )
        self.first_token_s = make(
            Histogram, "time_to_first_token_seconds", "Arrival to the first token", ("model",), buckets=_FIRST_S
        )
        self.tokens = make(
            Counter, "tokens", "Tokens of finished calls; cached ones are among prompt", ("kind", "model")
        )
        self.refused = make(Counter, "refused", "Calls refused before they were computed", ("reason",))
        self.cancelled = make(Counter, "cancelled", "Calls whose client went away")
        self.usage_failures = make(Counter, "usage_write_failures", "Times usage could not be written")
        for reason in REASONS:
            self.refused.labels(reason)
        self._of = {model: ModelMetrics(self, model) for model in self.token_times}
        self.registry.register(_Tokens(self.token_times))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def label(self, model: str | None) -> str:
        """The label of a model: its name where it is served by name, else "other"."""
        name = model or (self._models[0] if self._models else OTHER)
        return name if name in self._models else OTHER

    def of(self, label: str) -> ModelMetrics:
        """The children of a label."""
        return self._of[label]

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Export a number that is read when somebody asks."""
        Gauge(f"gemworks_{name}", help, registry=self.registry).set_function(read)

    def count(self, record: "Record") -> None:
        """Count a request that has ended."""
        self.requests.labels(record.route or OTHER, str(record.status or 499), record.model).inc()
        self.request_s.labels(record.route or OTHER, record.model).observe(record.seconds)
        if record.outcome == "cancelled":
            self.cancelled.inc()

    def watch(self, engines: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Export the EngineStats of the engines that `engines` yields with their model's name."""
        self.registry.register(_Engines(engines, self.label))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Tokens:
    def __init__(self, times: dict[str, TokenTimes]):
        self._times = times

    def collect(self) -> Iterable[Any]:
        name = "gemworks_inter_token_seconds"
        family = HistogramMetricFamily(name, "Time between two tokens of an answer", labels=("model",))
        for model, times in self._times.items():
            total, buckets = 0, []
            for bound, count in zip((*_TOKEN_S, math.inf), list(times.counts), strict=True):
                total += count
                buckets.append(("+Inf" if bound == math.inf else repr(float(bound)), total))
            family.add_metric((model,), buckets, times.sum_s)
        yield family


# EngineStats' field -> name, help. Counters first.
_COUNTERS = {
    "steps": ("steps", "Steps of the engine"),
    "step_s": ("step_seconds", "Seconds in which some step was on the device"),
    "tokens_prefilled": ("tokens_prefilled", "Prompt tokens computed"),
    "tokens_drawn": ("tokens_drawn", "Answer tokens drawn"),
    "tokens_cached": ("tokens_cached", "Prompt tokens found in the prefix cache"),
    "drafts_proposed": ("drafts_proposed", "Tokens guessed by speculation"),
    "drafts_accepted": ("drafts_accepted", "Guesses that were right"),
    "preemptions": ("preemptions", "Times an answer had to give its memory up and wait"),
    "evictions": ("evictions", "Pages of the prefix cache given to something else"),
}
_GAUGES = {
    "waiting": ("waiting", "Answers waiting for memory"),
    "running": ("running", "Answers being computed"),
    "pages_free": ("kv_pages_free", "Pages of keys and values that are free"),
    "pages_total": ("kv_pages", "Pages of keys and values"),
}


class _Engines:
    def __init__(self, engines: Callable[[], Iterable[tuple[str, Any]]], label: Callable[[str], str]):
        self._engines, self._label = engines, label

    def describe(self) -> Iterable[Any]:
        return ()

    def collect(self) -> Iterable[Any]:
        told: dict[str, Any] = {}
        for name, stats in self._engines():
            told.setdefault(self._label(name), stats)
        for fields, family in ((_COUNTERS, CounterMetricFamily), (_GAUGES, GaugeMetricFamily)):
            for field, (name, help) in fields.items():
                made = family(f"gemworks_engine_{name}", help, labels=("model",))
                for model, stats in told.items():
                    made.add_metric((model,), float(getattr(stats, field, 0)))
                yield made
