"""Which tokens of which requests are computed next. Plain Python over integers; no jax.

Requests wait by key (queues.py) until there are a ring and pages for them (allocator.py, which asks prefix.py what is
there already). A step (composer.py) has a decode row for runs that have their prompt, and one row that computes the
next part of one prompt. Where several keys have runs, fairness.py says whose turn it is and cost.py how long a step
will be, so that nobody's rows wait long for another's prompt; where one key is alone, and has been for some seconds,
steps are as full as they can be.

A run that needs a page when there is none takes it from the worst one: lowest priority, then youngest. That one waits,
first of its key, and computes again what the prefix cache does not keep for it. The best run of all is never preempted
for pages, and one alone always fits (`submit` sees to it), so there is always one that gets on.
"""

import time
from collections.abc import Callable

from gemworks.engine.allocator import Allocator
from gemworks.engine.composer import Composer
from gemworks.engine.cost import StepCost
from gemworks.engine.fairness import Turns
from gemworks.engine.pages import PagePool
from gemworks.engine.plan import CopyPage, Limits, LoadRing, RowPlan, Run, SaveRing, StepPlan
from gemworks.engine.queues import Entry, Group, Queues
from gemworks.engine.rings import RingPool
from gemworks.engine.types import FinishReason, Request
from gemworks.errors import CapacityError, ContextLengthError, RequestError

# Tokens of credit a key gets in a round, for priority 0.
QUANTUM = 64


class Scheduler:
    """Admits, steps, preempts and ends runs. One thread; `check` may be called from any.

    `stretch`: where several keys have runs, a step is predicted to take at most this times the smallest step that
    serves the key whose turn it is.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        pages: PagePool,
        rings: RingPool,
        local_pages: PagePool | None = None,
        cost: StepCost | None = None,
        clock: Callable[[], float] = time.monotonic,
        stretch: float = 2.0,
        quantum: int = QUANTUM,
    ):
        self.limits, self.cost = limits, cost or StepCost()
        self._pages, self._rings, self._clock = pages, rings, clock
        self._alloc = Allocator(limits, pages, rings, local_pages)
        self._turns = Turns(quantum, floor=limits.chunks[-1])
        self._queues = Queues(self._turns)
        self._composer = Composer(limits, self._alloc, self._queues, self._turns, self.cost, stretch)

    @property
    def num_waiting(self) -> int:
        """Runs that wait for a ring or pages."""
        return sum(len(queue.waiting) for queue in self._queues.by_key.values())

    @property
    def num_running(self) -> int:
        """Runs that have a ring."""
        return self._rings.num_rings - self._rings.num_free

    @property
    def preemptions(self) -> int:
        """Times a run had to give its ring and pages up."""
        return self._composer.preemptions

    @property
    def cached_tokens(self) -> int:
        """Tokens that were found in the prefix cache, those of resumed runs included."""
        return self._composer.cached_tokens

    @property
    def evictions(self) -> int:
        """Pages of the prefix cache that were given to something else, local pages included."""
        return self._alloc.cache.evicted_pages + self._alloc.cache.evicted_local_pages

    @property
    def cached_pages(self) -> int:
        """Pages the prefix cache has a share of."""
        return len(self._alloc.cache)

    def check(self, request: Request) -> None:
        """Raise what `submit` would raise."""
        answer_limit(request, self.limits, self._pages)

    def submit(self, request: Request, first_order: int) -> list[Run]:
        """Queue a request and return its n runs, whose orders are first_order, first_order + 1 ...

        RequestError where it breaks a limit of this engine, CapacityError where its pages can never be had.
        """
        limit = answer_limit(request, self.limits, self._pages)
        count = request.n if request.kind == "generate" else 1
        runs = [Run(request, i, list(request.prompt), limit, first_order + i) for i in range(count)]
        group = Group(list(runs))
        for run in runs:
            self._queues.add(Entry(run, group=group))
        return runs

    def schedule(self, now: float) -> StepPlan | None:
        """Return the next step; None where nothing can be done before a step in flight is read, or at all.

        Deadlines are seen by `complete`, and by the caller where nothing comes out of a run (`cancel`).
        """
        self._queues.now = now
        decode, prefill = self._composer.compose()
        before = self._alloc.take_actions()
        if not decode and prefill is None and not before:
            return None
        return StepPlan(before, decode, prefill)

    def launched(self, plan: StepPlan) -> None:
        """Note that a step is on its way."""
        for row in plan.rows:
            entry = self._queues.entries.get(row.run)
            if entry is None or row.run.ring is None:
                continue
            run = row.run
            run.computed = row.start + row.count
            entry.high = max(entry.high, run.computed)
            if row.draws:
                run.drawn += 1
            if row is plan.prefill or not entry.group.ready:
                done = run.computed >= run.prompt_tokens
                self._alloc.store(entry, last_window=done)
                entry.group.ready |= done

    def complete(self, row: RowPlan, ids: list[int]) -> FinishReason | None:
        """Note what a step drew for a row: one id, more where a draft was accepted, none where the row does not draw.

        Call it for every row, those of scores and embeddings included: these end here. Returns why the run ends.
        A row of a run that has ended already is ignored.
        """
        run = row.run
        entry = self._queues.entries.get(run)
        if entry is None:
            return None
        if row.draft:  # accepted tokens and one more; launched as one
            run.drawn += len(ids) - 1
            if run.ring is not None:
                run.computed = row.start + len(ids)
        reason = self._note(run, ids) if row.draws else None
        if run.request.kind != "generate" and row.start + row.count == run.prompt_tokens:
            reason = "stop"
        deadline = run.request.deadline_s
        if reason is None and deadline is not None and deadline <= self._clock():
            reason = "deadline"
        if reason is not None:
            self._end(entry)
        return reason

    def failed(self, plan: StepPlan, runs: list[Run]) -> None:
        """Forget a step that died before it ran, its actions included; `runs` end, the others of the step go on."""
        touched: set[int] = set()
        for action in plan.before + plan.after:
            if isinstance(action, SaveRing):
                for local in action.pages:
                    if (node := self._alloc.cache.local_owner(local.page)) is not None:
                        self._alloc.cache.drop_local(node)
            elif isinstance(action, CopyPage):
                touched |= {entry.run.order for entry in self._queues.running if action.target in entry.run.table}
            elif isinstance(action, LoadRing):
                touched |= {entry.run.order for entry in self._queues.running if entry.run.ring == action.ring}
        for run in runs:
            if run in self._queues.entries:
                self._end(self._queues.entries[run], keep=False)
        for entry in list(self._queues.running):
            if entry.run.order in touched:
                self._requeue(entry)
        for action in plan.before + plan.after:
            if isinstance(action, CopyPage):
                self._alloc.cache.drop_page(action.target)

    def lost(self) -> None:
        """Start again with an empty cache: every run goes back to waiting, with the tokens it has."""
        self._alloc.actions.clear()
        self._alloc.cache.clear()
        for entry in list(self._queues.running):
            self._requeue(entry)
        for entry in self._queues.entries.values():
            entry.run.drawn = len(entry.run.answer)
            entry.group.ready = False

    def cancel(self, run: Run, reason: FinishReason = "cancelled") -> None:
        """End a run now, for whatever reason; what it has computed stays in the prefix cache."""
        del reason
        if run in self._queues.entries:
            self._end(self._queues.entries[run])

    def drop_cache(self) -> None:
        """Empty the prefix cache; runs go on."""
        self._alloc.cache.clear()
        for entry in self._queues.running:
            entry.path, entry.tail = [], None

    def forget_adapter(self, adapter: str) -> None:
        """Drop what the prefix cache holds of an adapter: its name may mean other weights from now on.

        None of its runs may be under way.
        """
        assert all(entry.run.request.adapter != adapter for entry in self._queues.entries.values())
        self._alloc.cache.forget(adapter)

    def audit(self) -> None:
        """Assert all invariants of the scheduler, the pools and the prefix cache."""
        self._queues.audit()
        self._alloc.audit(list(self._queues.running))

    def _note(self, run: Run, ids: list[int]) -> FinishReason | None:
        for token_id in ids:
            if token_id in run.request.params.stop_ids:
                return "stop"
            run.tokens.append(token_id)
            if len(run.tokens) - run.prompt_tokens >= run.limit:
                return "length"
        return None

    def _requeue(self, entry: Entry) -> None:
        self._alloc.free(entry, keep=False)
        self._queues.stop(entry)

    def _end(self, entry: Entry, *, keep: bool = True) -> None:
        self._alloc.free(entry, keep=keep)
        self._queues.remove(entry)


def answer_limit(request: Request, limits: Limits, pages: PagePool) -> int:
    """Return how many tokens an answer may have, or refuse: a request that cannot fit is never cut."""
    prompt = len(request.prompt)
    if not prompt:
        raise RequestError("the prompt has no tokens; at least one is needed.")
    wanted = request.params.max_tokens if request.kind == "generate" else 0
    extra = 1 if wanted is None else wanted
    if prompt + extra > limits.context:
        asked = "" if request.kind != "generate" else f" ({prompt:,} prompt + {extra:,} answer)"
        raise ContextLengthError(
            f"this request needs {prompt + extra:,} tokens{asked}; the context holds {limits.context:,}.\n"
            f"Shorten the prompt by {prompt + extra - limits.context:,} tokens, lower max_tokens, "
            f"or load the model with a larger context."
        )
    stored = prompt + max(extra - 1, 0)  # the last answer token is never stored
    room = (pages.num_pages - 1) * pages.page_size
    if stored > room:
        raise CapacityError(
            f"this request stores {stored:,} tokens; the KV cache holds {room:,}.\n"
            "Shorten it, or give the engine more memory for the cache."
        )
    for span in request.spans:
        if span.length > limits.chunks[-1]:
            raise RequestError(
                f"an image of {span.length:,} tokens must be computed in one chunk; "
                f"the largest of this engine has {limits.chunks[-1]:,}."
            )
    return min(limits.context - prompt, room - prompt + 1) if wanted is None else extra
