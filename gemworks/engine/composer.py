"""What goes into one step: whose turn it is, which rows, how long a chunk. Plain Python over integers."""

import math
from collections.abc import Hashable, Iterable

from gemworks.engine.allocator import Allocator
from gemworks.engine.cost import StepCost
from gemworks.engine.fairness import Turns
from gemworks.engine.plan import Limits, RowPlan, Run
from gemworks.engine.queues import Entry, Queue, Queues, rank

# Steps a key's next run may be denied its ring or pages before other keys' runs are no longer admitted.
PATIENCE = 64


class Composer:
    """Fills one step. It admits and preempts where the step needs it."""

    def __init__(self, limits: Limits, alloc: Allocator, queues: Queues, turns: Turns, cost: StepCost, stretch: float):
        self._limits, self._alloc, self._queues, self._turns = limits, alloc, queues, turns
        self._cost, self._stretch = cost, stretch
        self._decode: list[RowPlan] = []
        self._planned: set[Run] = set()
        self.preemptions = self.cached_tokens = 0

    def compose(self) -> tuple[tuple[RowPlan, ...], RowPlan | None]:
        """Return the decode rows and the prefill row of the next step; neither where nothing can be done now."""
        queues = self._queues
        able = {key for key, queue in queues.by_key.items() if self._can_serve(queue)}
        weights = queues.weights
        while able:
            key = self._turns.pick(able, weights)
            self._decode, self._planned = [], set()
            prefill = self._serve(key, weights)
            if self._decode or prefill is not None:
                for row in (*self._decode, *([prefill] if prefill else [])):
                    owner = row.run.request.key
                    self._turns.charge(owner, row.count, own_turn=owner == key)
                return tuple(self._decode), prefill
            able.discard(key)
        return (), None

    def _can_serve(self, queue: Queue) -> bool:
        return any(one.can_decode or one.in_prefill for one in queue.running) or queue.can_start()

    def _serve(self, key: Hashable, weights: dict[Hashable, float]) -> RowPlan | None:
        """Plan a step that is the turn of `key`; return its prefill row.

        First what the key itself needs: all its decode rows and the smallest chunk of its next prompt. Then others'
        decode rows, the chunk's growth, and others' chunks, while the step is predicted to stay below `stretch` times
        that. Keys that have had this round's tokens, their rows riding along, come after the growth.
        """
        queues = self._queues
        alone = queues.is_alone
        prompt = self._prompt_of(key, weights)
        self._add_rows(queues.by_key[key].running, preempt=True)
        if prompt is not None and not prompt.in_prefill:
            prompt = None  # it had to give its pages up
        if prompt is None and not self._decode:
            return None
        chunk = 0 if prompt is None else self._chunk(prompt, self._limits.chunks[0])
        limit_s = math.inf if alone else self._stretch * self._cost.predict(len(self._decode), chunk)
        turns = self._turns
        others = sorted(
            (other for other in queues.by_key if other != key), key=lambda other: -turns.credit(other) / weights[other]
        )
        light = [other for other in others if not turns.is_exhausted(other)]
        for other in light:
            self._add_rows(queues.by_key[other].running, chunk=chunk, limit_s=limit_s)
        if prompt is not None:
            chunk = self._grow(prompt, chunk, limit_s)
        for other in others[len(light) :]:
            self._add_rows(queues.by_key[other].running, chunk=chunk, limit_s=limit_s)
        for other in others:
            if prompt is not None or not self._fits(self._limits.chunks[0], limit_s):
                break
            prompt = self._prompt_of(other, weights, limit_s)
            if prompt is not None:
                chunk = self._grow(prompt, self._chunk(prompt, self._limits.chunks[0]), limit_s)
                prompt = prompt if self._fits(chunk, limit_s) else None  # begins with a soft span that is too long
        if prompt is None:
            return None
        run, end = prompt.run, self._chunk_end(prompt.run, chunk)
        draws = run.request.kind == "generate" and end == len(run.tokens)
        return RowPlan(run, run.computed, end - run.computed, draws)

    # -- decode rows ---------------------------------------------------------------------------------------------

    def _add_rows(
        self, entries: Iterable[Entry], *, preempt: bool = False, chunk: int = 0, limit_s: float = math.inf
    ) -> None:
        """Plan the decode rows of runs, best first, while the step stays below its limit."""
        for entry in list(entries):
            if not entry.can_decode or entry.run in self._planned:
                continue
            if self._cost.predict(len(self._decode) + 1, chunk) > limit_s:
                return
            if (row := self._row(entry, preempt)) is not None:
                self._decode.append(row)
                self._planned.add(entry.run)

    def _row(self, entry: Entry, preempt: bool) -> RowPlan | None:
        """Return the decode row of a run; None where there is no page for it."""
        run = entry.run
        most = min(self._limits.draft, run.limit - run.drawn - 1) if entry.missing == 1 else 0
        draft = run.draft[: max(0, most)]
        if draft and not self._alloc.reserve(run, run.computed + 1 + len(draft)):
            draft = []
        while not self._alloc.reserve(run, run.computed + 1):
            if not preempt:
                return None
            victim = max((one for one in self._queues.running if one.run not in self._planned), key=rank)
            self.preempt(victim)
            if victim is entry:
                return None
        run.draft = []
        return RowPlan(run, run.computed, 1 + len(draft), True, tuple(draft))

    def preempt(self, entry: Entry) -> None:
        """Take everything from a run; it waits and resumes with what the prefix cache still has then."""
        self.preemptions += 1
        self._alloc.free(entry, keep=True)
        self._queues.stop(entry)

    # -- the prefill row -----------------------------------------------------------------------------------------

    def _prompt_of(self, key: Hashable, weights: dict[Hashable, float], limit_s: float = math.inf) -> Entry | None:
        """Return the run of a key whose prompt is computed next, admitted now where none is under way.

        A run that finds all but its last token in the prefix cache needs no chunk: it becomes a decode row.
        """
        queue = self._queues.by_key[key]
        prompt = next((entry for entry in queue.running if entry.in_prefill), None)
        for entry in list(queue.waiting) if prompt is None else []:
            if entry.in_flight:
                break  # preempted a step ago; it keeps its place
            if not entry.may_start:
                continue
            if not self._admit(entry, weights):
                break
            if entry.in_prefill:
                prompt = entry
                break
            self._add_rows([entry], limit_s=limit_s)
        return prompt

    def _admit(self, entry: Entry, weights: dict[Hashable, float]) -> bool:
        """Admit a waiting run, at the cost of keys that hold more than their share where it must be."""
        queue = self._queues.by_key[entry.key]
        overdue = max(filter(Queue.can_start, self._queues.by_key.values()), key=lambda one: one.denied)
        if overdue is not queue and overdue.denied >= PATIENCE:
            return False
        spare = 1 if any(self._queues.running) else 0
        while not self._alloc.admit(entry, longest_prefix(entry.run), spare=spare):
            victim = self._over_share(entry, weights)
            if victim is None:
                queue.denied += 1
                return False
            self.preempt(victim)
        queue.denied = 0
        if not entry.admitted:
            entry.run.cached_tokens = entry.run.computed
        self.cached_tokens += entry.run.computed
        self._queues.start(entry)
        return True

    def _over_share(self, entry: Entry, weights: dict[Hashable, float]) -> Entry | None:
        """Return the run to preempt for one whose key stays within its share with it; None where there is none.

        The share is of what is lacking, rings or pages. A key without any run may take a ring from one that has two.
        No two runs can take turns in preempting each other: who took is within its share, who gave was above.
        """
        by_key, alloc = self._queues.by_key, self._alloc
        rings = not alloc.free_rings
        whole = alloc.num_rings if rings else alloc.num_pages
        needed = 1 if rings else alloc.pages_for(len(entry.run.tokens))
        share = {key: whole * weight / sum(weights.values()) for key, weight in weights.items()}
        held = {key: len(queue.running) if rings else queue.pages for key, queue in by_key.items()}
        first = rings and not by_key[entry.key].running
        if not first and held[entry.key] + needed > share[entry.key]:
            return None
        over = [
            key
            for key, queue in by_key.items()
            if key != entry.key
            and held[key] > max(share[key], first)
            and any(self._may_give(one) for one in queue.running)
        ]
        if not over:
            return None
        most = by_key[max(over, key=lambda key: held[key] / share[key])]
        return max((one for one in most.running if self._may_give(one)), key=rank)

    def _may_give(self, entry: Entry) -> bool:
        return entry.run not in self._planned

    def _chunk(self, entry: Entry, budget: int) -> int:
        """Return the columns of a chunk of about `budget` tokens of a run: more where it begins with a soft span."""
        count = self._chunk_end(entry.run, budget) - entry.run.computed
        return next(chunk for chunk in self._limits.chunks if chunk >= count)

    def _grow(self, entry: Entry, chunk: int, limit_s: float) -> int:
        """Return the largest chunk that keeps the step below its limit, and no larger than the run has tokens for."""
        for larger in self._limits.chunks:
            if larger > chunk and self._chunk(entry, larger) > chunk and self._fits(larger, limit_s):
                chunk = larger
        return chunk

    def _fits(self, chunk: int, limit_s: float) -> bool:
        return self._cost.predict(len(self._decode), chunk) <= limit_s

    def _chunk_end(self, run: Run, budget: int) -> int:
        """Return where a chunk of at most `budget` tokens ends: not inside a soft span, beyond one it starts with."""
        end = min(run.computed + budget, len(run.tokens))
        if end < len(run.tokens) and end // self._limits.page_size * self._limits.page_size > run.computed:
            end -= end % self._limits.page_size  # so that the ring holds every page of a chunk whole when it is saved
        for span in run.request.spans:
            if span.start < end < span.end:
                return span.start if span.start > run.computed else span.end
        return end


def longest_prefix(run: Run) -> int:
    """Return how many tokens of a run may come from the prefix cache: the rest must be computed for its answer."""
    if not run.request.use_cache or run.request.kind == "embed":
        return 0
    longest = len(run.tokens) - 1
    return min(longest, run.request.score_from - 1) if run.request.kind == "score" else longest
