"""What a running server keeps beside its models: keys, limits, usage, metrics, logs. Made once, from the settings."""

from typing import TYPE_CHECKING, Any

from gemworks.server.calls import Calls
from gemworks.server.keys import Keys
from gemworks.server.limits import Limits
from gemworks.server.logs import Logs
from gemworks.server.metrics import Metrics
from gemworks.server.settings import Settings
from gemworks.server.settings_file import resolved
from gemworks.server.telemetry import open_telemetry
from gemworks.server.usage import Usage

if TYPE_CHECKING:
    from gemworks.server.record import Record


class Services:
    """Everything handlers and middlewares share. `close` writes what is pending.

    Raises ConfigError or StorageError where a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.is_ready = False  # set by whoever loads the models, once they are warm
        self.metrics = Metrics(settings.models.names)
        self.logs = Logs(settings.logs)
        self.keys = Keys(settings.keys_file) if settings.keys_file is not None else None
        self.usage = Usage(settings.usage_file, logs=self.logs, failed=self.metrics.usage_failures.inc)
        self.limits = Limits(settings.limits)
        self.telemetry = open_telemetry(settings.telemetry)
        self.calls = Calls(
            settings.limits.queue, self.limits, self.metrics, self.finished, stopping=self._tell_stopping
        )
        self._export()
        if not self.logs.is_text:  # for a person the command line prints them
            self.logs.tell("settings", settings={name: value for name, value, _ in resolved(settings)})

    def _export(self) -> None:
        metrics, calls = self.metrics, self.calls
        metrics.gauge("calls_waiting", "Calls that wait for their first token", lambda: calls.waiting)
        metrics.gauge("calls_running", "Calls in the server, waiting ones included", lambda: calls.running)
        metrics.gauge("queue_limit", "Calls that may wait", lambda: self.settings.limits.queue)
        metrics.gauge("draining", "1 while the server stops", lambda: calls.draining)
        metrics.gauge("ready", "1 while the server takes calls", lambda: self.accepts)
        metrics.gauge("usage_pending", "Calls whose usage is not on the disk yet", lambda: self.usage.pending)
        metrics.gauge("log_lines_dropped", "Log lines dropped because the log could not be written", self.logs.lost)

    @property
    def accepts(self) -> bool:
        """Whether new calls are taken: loaded, and not draining."""
        return self.is_ready and not self.calls.draining

    def finished(self, record: "Record") -> None:
        """Write a request that has ended into the books."""
        self.metrics.count(record)
        if record.outcome and record.outcome != "refused":
            self.usage.add(record)
        self.logs.request(record)
        if record.outcome and self.telemetry is not None:
            self.telemetry.record(record)

    def _tell_stopping(self, running: int) -> None:
        self.logs.tell("stopping", running=running, grace_seconds=self.settings.grace_s)

    def problems(self) -> dict[str, Any]:
        """What works not as it should though calls are answered: part -> sentence."""
        found = {"usage": self.usage.problem, "keys": self.keys.problem if self.keys is not None else None}
        return {part: problem for part, problem in found.items() if problem}

    def close(self) -> None:
        """Write what is pending, and end the threads."""
        self.logs.tell("stopped")
        self.usage.close()
        if self.telemetry is not None:
            self.telemetry.close()
        self.logs.close()
