"""What the server notes of one request while it runs: the source of its log line, its metrics, its usage and its span.

Counts and times only: nothing of what was asked or answered can get in here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# How a call ended. refused: by a limit, a full queue or draining, before anything was computed.
OUTCOMES = ("done", "cancelled", "failed", "refused")


class SlowReader(Exception):
    """Whoever asked reads nothing of the answer any more (limits.stream_idle_s)."""


@dataclass(kw_only=True, slots=True)
class Record:
    """One HTTP request, and the call of a model in it if there is one. Times are time.perf_counter()."""

    id: str
    method: str
    path: str
    route: str = ""  # path of the route, as "/v1/models"; "" where there is none
    call: str = ""  # kind of call: "chat", "embeddings"; "" where no model was asked
    model: str = ""
    key: str = ""
    status: int = 0  # HTTP; 0: the client went away before an answer began
    outcome: str = ""  # of the call
    error: str = ""  # the exception's class
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    traceparent: str = ""
    started: float = field(default_factory=time.perf_counter)
    started_at: float = field(default_factory=time.time)
    queue_s: float = 0.0
    first_token_s: float | None = None
    seconds: float = 0.0
    parts: int = 0  # the response and the call, each of which may end last

    def enter(self) -> None:
        """One more part of the server works on this request."""
        self.parts += 1

    def leave(self, finished: Callable[["Record"], Any]) -> None:
        """A part is done; the last one hands the record over."""
        self.parts -= 1
        if self.parts == 0:
            self.seconds = time.perf_counter() - self.started
            finished(self)
