"""The runs that are not done, by key: who waits in which order, and who runs. Plain Python over integers."""

from bisect import insort
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from gemworks.engine.allocator import Holding
from gemworks.engine.fairness import Turns, place, weight_of
from gemworks.engine.plan import Run


@dataclass(slots=True, eq=False)
class Group:
    """The n runs of one request; all but the first wait until the prompt is in the prefix cache."""

    live: list[Run]
    ready: bool = False


@dataclass(slots=True, eq=False)
class Entry(Holding):
    """A run that is not done, as the scheduler sees it."""

    group: Group = field(default_factory=lambda: Group([]))
    admitted: bool = False  # ever: it goes before those that were not

    @property
    def key(self) -> Hashable:
        """Whose run it is."""
        return self.run.request.key

    @property
    def in_flight(self) -> int:
        """Draws that were launched and not read."""
        return self.run.drawn - (len(self.run.tokens) - self.run.prompt_tokens)

    @property
    def missing(self) -> int:
        """Known tokens that are not computed; negative or 0 where the next token is on its way."""
        return len(self.run.tokens) - self.run.computed

    @property
    def can_decode(self) -> bool:
        """Whether one more token can be computed and drawn now."""
        run = self.run
        if run.ring is None or run.request.kind != "generate" or run.drawn >= run.limit:
            return False
        shape = (self.missing, self.in_flight)
        return shape == (1, 0) or (shape == (0, 1) and run.ahead)

    @property
    def in_prefill(self) -> bool:
        """Whether it runs and has known tokens that are to be computed in chunks."""
        return self.run.ring is not None and self.missing > (1 if self.run.request.kind == "generate" else 0)

    @property
    def may_start(self) -> bool:
        """Whether it may be admitted: no draw of it is on its way, and no other run is computing its prompt."""
        run, group = self.run, self.group
        return not self.in_flight and (group.ready or not run.request.use_cache or group.live[0] is run)


def place_of(entry: Entry) -> tuple[bool, int]:
    """Return where an entry stands in its key's queue: preempted runs first, then by priority and arrival."""
    return not entry.admitted, place(entry.run.order, entry.run.request.priority)


def rank(entry: Entry) -> tuple[int, int]:
    """Return what running runs are ordered by, best first: priority, then arrival. The worst is preempted first."""
    return -entry.run.request.priority, entry.run.order


@dataclass(slots=True, eq=False)
class Queue:
    """The runs of one key: those that wait, the next first, and those that run, the best first."""

    waiting: list[Entry] = field(default_factory=list)
    running: list[Entry] = field(default_factory=list)
    levels: Counter[int] = field(default_factory=Counter)  # priorities of its runs
    denied: int = 0  # times its next run was not admitted, since one was

    @property
    def weight(self) -> float:
        """Share of the key, by its best run."""
        return weight_of(max(self.levels))

    def can_start(self) -> bool:
        """Whether a run waits for nothing but a ring and pages."""
        return any(entry.may_start for entry in self.waiting)

    @property
    def pages(self) -> int:
        """Pages its runs hold, shared ones counted for each."""
        return sum(len(entry.run.table) for entry in self.running)


# Seconds that a key which left counts as company: whoever sends one short request after another is gone for moments,
# and would meet a step filled for those who are alone each time it comes back (1B, a chunk of 512: 1.3 s).
COMPANY_S = 15.0


class Queues:
    """All keys' queues. `turns` is told of keys that come and go; `now` is the scheduler's time of the latest step."""

    def __init__(self, turns: Turns):
        self._turns = turns
        self.now = 0.0
        self._left: dict[Hashable, float] = {}  # keys without runs, and when they had the last one
        self.by_key: dict[Hashable, Queue] = {}
        self.entries: dict[Run, Entry] = {}

    @property
    def is_alone(self) -> bool:
        """Whether one key has runs, and no other had any lately."""
        if self._left:
            self._left = {key: left_s for key, left_s in self._left.items() if self.now - left_s < COMPANY_S}
        return len(self.by_key) == 1 and not self._left.keys() - self.by_key.keys()

    @property
    def running(self) -> Iterator[Entry]:
        """Every run that has a ring."""
        return (entry for queue in self.by_key.values() for entry in queue.running)

    @property
    def weights(self) -> dict[Hashable, float]:
        """Weight of every key."""
        return {key: queue.weight for key, queue in self.by_key.items()}

    def add(self, entry: Entry) -> None:
        """Queue a new run."""
        self.entries[entry.run] = entry
        if entry.key not in self.by_key:
            self.by_key[entry.key] = Queue()
            self._turns.enter(entry.key)
        queue = self.by_key[entry.key]
        insort(queue.waiting, entry, key=place_of)
        queue.levels[entry.run.request.priority] += 1

    def start(self, entry: Entry) -> None:
        """Move a run from waiting to running."""
        queue = self.by_key[entry.key]
        queue.waiting.remove(entry)
        entry.admitted = True
        insort(queue.running, entry, key=rank)

    def stop(self, entry: Entry) -> None:
        """Move a run from running to waiting."""
        queue = self.by_key[entry.key]
        queue.running.remove(entry)
        insort(queue.waiting, entry, key=place_of)

    def remove(self, entry: Entry) -> None:
        """Forget a run."""
        del self.entries[entry.run]
        entry.group.live.remove(entry.run)
        queue = self.by_key[entry.key]
        (queue.running if entry in queue.running else queue.waiting).remove(entry)
        level = entry.run.request.priority
        queue.levels[level] -= 1
        if not queue.levels[level]:
            del queue.levels[level]
        if not queue.levels:
            del self.by_key[entry.key]
            self._left[entry.key] = self.now
            self._turns.leave(entry.key)

    def audit(self) -> None:
        """Assert that every run is in its key's queue once, where its ring says."""
        entries = [entry for queue in self.by_key.values() for entry in (*queue.waiting, *queue.running)]
        assert len(entries) == len(self.entries) and {entry.run for entry in entries} == set(self.entries)
        for key, queue in self.by_key.items():
            assert queue.levels == Counter(entry.run.request.priority for entry in (*queue.waiting, *queue.running))
            assert all(entry.key == key and entry.run.ring is not None for entry in queue.running)
            assert all(entry.key == key and entry.run.ring is None and not entry.run.table for entry in queue.waiting)
            assert queue.waiting == sorted(queue.waiting, key=place_of)
            assert queue.running == sorted(queue.running, key=rank)
