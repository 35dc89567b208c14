"""What the engine keeps of a run until it ends, and what it counts."""

import time
from dataclasses import dataclass

from gemworks.engine.handle import Handle
from gemworks.engine.plan import Run
from gemworks.engine.scores import Scores
from gemworks.engine.types import Timings

# A moment: time.perf_counter(), and how many seconds had been spent on compiling by then.
Moment = tuple[float, float]


@dataclass(kw_only=True, slots=True)
class EngineStats:
    """Counts since the engine was made; the last ones are of now."""

    requests: int = 0
    steps: int = 0
    rows_decoded: int = 0
    tokens_prefilled: int = 0
    tokens_drawn: int = 0
    tokens_cached: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    preemptions: int = 0
    evictions: int = 0  # of the prefix cache
    step_s: float = 0.0  # some step was on the device
    host_s: float = 0.0  # the engine's thread planned, launched and told callers
    wait_s: float = 0.0  # the engine's thread waited for the device
    waiting: int = 0
    running: int = 0
    pages_free: int = 0
    pages_total: int = 0


@dataclass(slots=True)
class Live:
    """A run that has not ended. `prefilled` counts prompt tokens that were computed for it."""

    run: Run
    handle: Handle
    submitted: Moment
    scores: Scores | None = None
    started: Moment | None = None  # its first step was launched
    first: Moment | None = None  # its first token was read
    prefilled: int = 0

    def timings(self, compiled_s: float) -> Timings:
        """Return the times of the answer so far, each without what was compiled meanwhile."""
        now = time.perf_counter(), compiled_s
        started, first = self.started or now, self.first or now
        return Timings(
            compile_s=compiled_s - self.submitted[1],
            queue_s=between(self.submitted, started),
            prefill_s=between(started, first),
            decode_s=between(first, now),
            prefill_tokens=self.prefilled,
            decode_tokens=max(0, len(self.run.answer) - 1),
            cached_tokens=self.run.cached_tokens,
        )


def between(one: Moment, other: Moment) -> float:
    """Return the seconds from one moment to another, without those of compiling."""
    return max(0.0, other[0] - one[0] - (other[1] - one[1]))
