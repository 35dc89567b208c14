"""OpenTelemetry: one span a call, with counts and times. Needs the extra `telemetry`, imported where it is used."""

import math
from typing import TYPE_CHECKING, Any

from gemworks.errors import ConfigError
from gemworks.server.settings import TelemetrySettings

if TYPE_CHECKING:
    from gemworks.server.record import Record


def open_telemetry(settings: TelemetrySettings, *, exporter: Any = None) -> "Telemetry | None":
    """Return what records spans, None where no endpoint is set. `exporter`: another one than OTLP over HTTP.

    Raises ConfigError where the extra is not installed.
    """
    if settings.endpoint is None and exporter is None:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found]
                OTLPSpanExporter,
            )

            exporter = OTLPSpanExporter(endpoint=settings.endpoint)
    except ImportError as error:
        raise ConfigError(
            f"telemetry.endpoint needs OpenTelemetry, and {error.name} is not installed.\n"
            "Install it with: pip install 'gemworks[telemetry]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": settings.service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Telemetry(provider)


class Telemetry:
    """Turns ended calls into spans; a thread of the library sends them."""

    def __init__(self, provider: Any):
        self._provider = provider
        self._tracer = provider.get_tracer("gemworks")

    def record(self, record: "Record") -> None:
        """Make the span of a call: a child of the caller's, where it sent a traceparent header."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        context = extract({"traceparent": record.traceparent}) if record.traceparent else None
        begun = int(record.started_at * 1e9)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": record.call,
            "gen_ai.request.model": record.model,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.response.finish_reasons": record.finish_reasons,
            "gemworks.request.id": record.id,
            "gemworks.usage.cached_tokens": record.cached_tokens,
            "gemworks.outcome": record.outcome,
            "http.response.status_code": record.status,
        }
        if record.first_token_s is not None:
            attributes["gemworks.time_to_first_token"] = record.first_token_s
        span = self._tracer.start_span(
            f"{record.call} {record.model}",
            context=context,
            kind=SpanKind.SERVER,
            start_time=begun,
            attributes=attributes,
        )
        if record.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(end_time=begun + math.ceil(record.seconds * 1e9))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
