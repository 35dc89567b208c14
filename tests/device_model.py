"""A device without arithmetic: every page slot, ring slot and local page slot holds which text's token it is of.

The key of a token at position p stands for the whole text up to p (and its adapter), as a real one does: `marks` are a
chain of hashes. A step checks that each row reads exactly the keys it should, before it writes its own.
"""

import zlib
from collections import deque
from dataclasses import dataclass, field

from gemworks.engine.pages import PagePool
from gemworks.engine.plan import CopyPage, Limits, LoadRing, RowPlan, Run, StepPlan
from gemworks.engine.prefix import units_of
from gemworks.engine.rings import RingPool
from gemworks.engine.scheduler import Scheduler
from gemworks.engine.types import FinishReason, Request
from gemworks.errors import CapacityError

VOCAB = 11
STOP = 0


def mark_after(mark: int, unit) -> int:
    return hash((mark, unit))


def first_mark(adapter: str | None) -> int:
    return zlib.crc32(repr(adapter).encode())  # not hash(): that of a string differs from process to process


def drawn_token(mark: int, index: int, seed: int | None) -> int:
    """Return the token a run draws after the text of `mark`: never depends on what runs beside it."""
    return hash((mark, index, seed)) % VOCAB


def expected_answer(request: Request, index: int, limit: int) -> list[int]:
    """Return the answer of a run that is alone on a device without limits."""
    run = Run(request, index, list(request.prompt), limit, 0)
    mark = first_mark(request.adapter)
    for unit in units_of(run, 0, len(run.tokens)):
        mark = mark_after(mark, unit)
    answer = []
    while len(answer) < limit:
        token = drawn_token(mark, index, request.params.seed)
        if token in request.params.stop_ids:
            break
        answer.append(token)
        mark = mark_after(mark, token)
    return answer


@dataclass
class Device:
    """Pages, rings and local pages, full of marks. `launch` runs a step and returns what its rows draw."""

    limits: Limits
    num_pages: int
    num_local: int
    pages: list[list[int]] = field(init=False)
    rings: list[list[int]] = field(init=False)
    local: list[list[int]] = field(init=False)

    def __post_init__(self):
        self.lose()

    def lose(self) -> None:
        size = self.limits.page_size
        self.pages = [[-1] * size for _ in range(self.num_pages)]
        self.rings = [[-1] * self.limits.slots for _ in range(self.limits.max_sequences)]
        self.local = [[-1] * size for _ in range(self.num_local)]
        self.last_token = [-1] * self.limits.max_sequences
        self.marks: dict[Run, list[int]] = {}  # of tokens [0, n), where marks[n] is known

    def launch(self, plan: StepPlan) -> list[list[int]]:
        for action in plan.before:
            self.act(action)
        results = [self.compute(row, row is plan.prefill) for row in plan.rows]
        assert len({row.run.ring for row in plan.rows}) == len(plan.rows)
        for action in plan.after:
            self.act(action)
        return results

    def act(self, action) -> None:
        size, slots = self.limits.page_size, self.limits.slots
        if isinstance(action, CopyPage):
            assert action.target != 0 != action.source
            self.pages[action.target] = list(self.pages[action.source])
            return
        assert len({local.page for local in action.pages}) == len(action.pages)
        for local in action.pages:
            assert local.page != 0 and 0 < local.count <= size
            for i in range(local.first, local.count):
                slot = (local.index * size + i) % slots
                if isinstance(action, LoadRing):
                    self.rings[action.ring][slot] = self.local[local.page][i]
                else:
                    self.local[local.page][i] = self.rings[action.ring][slot]

    def marks_of(self, run: Run, tokens: list[int]) -> list[int]:
        """Return marks: marks[p + 1] is that of the text up to position p."""
        marks = [first_mark(run.request.adapter)]
        given = Run(run.request, run.index, tokens, 0, 0)
        for unit in units_of(given, 0, len(tokens)):
            marks.append(mark_after(marks[-1], unit))
        return marks

    def compute(self, row: RowPlan, is_prefill: bool) -> list[int]:
        run, size, slots = row.run, self.limits.page_size, self.limits.slots
        start, end = row.start, row.start + row.count
        assert run.ring is not None and row.count > 0 and run.computed == start
        assert row.count <= self.limits.chunks[-1] if is_prefill else row.count == 1 + len(row.draft)
        assert end <= len(run.table) * size and run.drawn < max(run.limit, 1)
        tokens = list(run.tokens)
        if start == len(tokens):
            tokens.append(self.last_token[run.ring])
        tokens += row.draft
        assert end <= len(tokens), "a token is computed that nobody knows"
        for span in run.request.spans:
            assert not span.start < start < span.end and not span.start < end < span.end, "a soft span was cut"
        marks = self.marks_of(run, tokens[:end])
        # Reads: every stored position of the global layers, the window of the first token of the local layers.
        for i in range(-(-start // size)):
            count = min(size, start - i * size)
            held = self.pages[run.table[i]][:count]
            assert held == marks[i * size + 1 : i * size + count + 1], f"page {i} of {run.order} holds another text"
        if self.limits.window is not None:
            for position in range(max(0, start - self.limits.window + 1), start):
                assert self.rings[run.ring][position % slots] == marks[position + 1], f"{position=} of {run.order=}"
        for position in range(start, end):
            self.pages[run.table[position // size]][position % size] = marks[position + 1]
            self.rings[run.ring][position % slots] = marks[position + 1]
        if not row.draws:
            assert not row.draft
            return []
        assert end - len(row.draft) >= len(run.tokens), "a draw before all known tokens are computed"
        ids = []
        for drafted in (*row.draft, None):
            place = end - len(row.draft) + len(ids)
            ids.append(drawn_token(marks[place], run.index, run.request.params.seed))
            if ids[-1] != drafted:
                break
        self.last_token[run.ring] = ids[-1]
        return ids

    def check_cache(self, scheduler: Scheduler) -> None:
        """Check what the prefix cache believes against what is there; only where no action is pending."""
        cache = scheduler._alloc.cache
        stack = [(root, first_mark(adapter)) for adapter, root in cache._roots.items()]
        while stack:
            parent, mark = stack.pop()
            for node in parent.children.values():
                marks = [mark]
                for unit in node.units:
                    marks.append(mark_after(marks[-1], unit))
                assert self.pages[node.page][: len(node.units)] == marks[1:]
                if node.local is not None:
                    held = self.local[node.local][node.local_start : node.local_end]
                    assert held == marks[1 + node.local_start : 1 + node.local_end]
                stack.append((node, marks[-1]))


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FaultyPool(PagePool):
    """A page pool whose `take` raises where it is told to."""

    faults: int = 0  # the next so many calls raise

    def take(self, count: int) -> list[int]:
        if count and self.faults:
            self.faults -= 1
            raise CapacityError("injected")
        return super().take(count)


class FaultyRings(RingPool):
    """A ring pool whose `take` raises where it is told to."""

    faults: int = 0

    def take(self) -> int:
        if self.faults:
            self.faults -= 1
            raise CapacityError("injected")
        return super().take()


class Harness:
    """The engine's loop around a scheduler and a `Device`: one step in flight while the next is planned."""

    def __init__(self, limits: Limits, *, num_pages: int, num_local: int | None, cost=None, lag: int = 1, step_s=None):
        self.clock = Clock()
        self.pages = FaultyPool(num_pages, limits.page_size)
        self.rings = FaultyRings(limits.max_sequences, limits.slots)
        self.local_pages = None if num_local is None else FaultyPool(num_local, limits.page_size)
        self.scheduler = Scheduler(
            limits, pages=self.pages, rings=self.rings, local_pages=self.local_pages, cost=cost, clock=self.clock
        )
        self.device = Device(limits, num_pages, num_local or 1)
        self.lag = lag  # steps in flight when the next is planned
        self.step_s = step_s or (lambda plan: 1.0)
        self.in_flight: deque[tuple[StepPlan, list[list[int]]]] = deque()
        self.live: dict[Run, list[int]] = {}  # run -> its answer as the events gave it
        self.done: dict[Run, tuple[FinishReason | str, list[int]]] = {}
        self.orders = 0
        self.steps = self.tokens = 0
        self.trace: list[StepPlan] = []

    def submit(self, request: Request) -> list[Run]:
        runs = self.scheduler.submit(request, self.orders)
        self.orders += len(runs)
        self.live |= {run: [] for run in runs}
        return runs

    def step(self) -> bool:
        """Plan and launch a step, then read those that are due; False where there was nothing to do at all."""
        self.end_late()
        plan = self.scheduler.schedule(self.clock.now)
        if plan is not None:
            self.launch(plan)
        busy = plan is not None or bool(self.in_flight)
        while len(self.in_flight) > (self.lag if plan is not None else 0):
            self.read()
        return busy

    def end_late(self) -> None:
        for run in [run for run in self.live if (run.request.deadline_s or 1e9) <= self.clock.now]:
            self.scheduler.cancel(run, "deadline")
            self.finish(run, "deadline")

    def launch(self, plan: StepPlan) -> None:
        self.steps += 1
        self.tokens += plan.tokens
        self.clock.now += self.step_s(plan)
        self.in_flight.append((plan, self.device.launch(plan)))
        self.scheduler.launched(plan)
        if not self.scheduler._alloc.actions and self.steps % 7 == 0:
            self.device.check_cache(self.scheduler)

    def fail(self, *, acted: bool, guilty: int) -> None:
        """Plan a step that dies before its rows are computed, its actions done or not, by the fault of some rows."""
        self.end_late()
        plan = self.scheduler.schedule(self.clock.now)
        if plan is None:
            return
        for action in plan.before if acted else ():
            self.device.act(action)
        runs = [row.run for row in plan.rows][:guilty]
        self.scheduler.failed(plan, runs)
        for run in runs:
            self.finish(run, "error")

    def lose(self) -> None:
        """Lose everything that is on the device, steps in flight included."""
        self.in_flight.clear()
        self.device.lose()
        self.scheduler.lost()

    def read(self) -> None:
        plan, results = self.in_flight.popleft()
        for row, ids in zip(plan.rows, results, strict=True):
            live = row.run in self.live
            before = len(row.run.answer)
            reason = self.scheduler.complete(row, ids)
            if live:
                self.live[row.run] += row.run.answer[before:]
            if reason is not None:
                self.finish(row.run, reason)

    def finish(self, run: Run, reason: FinishReason | str) -> None:
        answer = self.live.pop(run)
        assert answer == run.answer
        self.done[run] = (reason, answer)
        assert run.ring is None and not run.table
        if run.request.kind == "generate":
            expected = expected_answer(run.request, run.index, run.limit)
            if reason in ("stop", "length"):
                assert answer == expected
                assert (reason == "length") == (len(answer) == run.limit)
            else:
                assert answer == expected[: len(answer)]

    def cancel(self, run: Run) -> None:
        self.scheduler.cancel(run)
        self.finish(run, "cancelled")

    def run_all(self, most: int = 100_000) -> None:
        """Step until nothing is left."""
        while self.step():
            most -= 1
            assert most > 0, "no end"
        assert not self.live, f"{len(self.live)} runs are stuck"

    def check_empty(self) -> None:
        """Everything comes back once the cache is dropped."""
        self.scheduler.audit()
        self.scheduler.drop_cache()
        assert self.pages.num_free == self.pages.num_pages - 1
        assert self.rings.num_free == self.rings.num_rings
        assert self.local_pages is None or self.local_pages.num_free == self.local_pages.num_pages - 1
