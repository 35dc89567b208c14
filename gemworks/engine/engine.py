"""The engine: many requests at once over one `Runner`, token ids in, events out.

A thread of its own plans a step (scheduler.py), launches it, and reads the one before while the device computes:

    plan n+1 | launch n+1 | read n, tell callers | plan n+2 | ...        host
             |       step n        |       step n+1        | ...        device

so that the host's part of a step, about a millisecond, is spent beside the device's and not after it. A row whose next
draw needs the host (a penalty, a mask, a draft) waits until its last one was read.

Callers are threads or event loops; what they share with the engine's thread is its inbox (worker.py) and a `Handle`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gemworks.engine.adapters import AdapterPool
from gemworks.engine.cost import StepCost
from gemworks.engine.drafting import Drafting, NewProposer
from gemworks.engine.encoder_cache import EncoderCache
from gemworks.engine.gains import row_gains
from gemworks.engine.handle import Handle
from gemworks.engine.live import EngineStats, Live, Moment, between
from gemworks.engine.plan import RowPlan, StepPlan
from gemworks.engine.runner import Pending, Runner
from gemworks.engine.sampler import RowSampler, SampleResult
from gemworks.engine.scheduler import Scheduler
from gemworks.engine.scores import Scores
from gemworks.engine.shapes import MAX_DRAFT_ROWS
from gemworks.engine.spans import soft_tokens, spans_in
from gemworks.engine.step import StepExtra
from gemworks.engine.types import FinishReason, Request, TokenEvent
from gemworks.engine.worker import Worker
from gemworks.errors import BackendError, GemworksError, RequestError
from gemworks.weights.adapter import LoraAdapter

# Embeddings of images kept between requests: 100 of 256 tokens for 4B.
ENCODINGS_BYTES = 256 << 20

MAX_ADAPTERS = 4  # of one engine, where nobody made room for more


class Engine:
    """Computes requests with one `Runner`, which nobody else may use meanwhile.

    adapters, encodings: pools of its own; None makes them when they are needed. new_proposer: guesses for speculation
    (speculative.py), made for each run; None: no speculation. `submit` may be called by any thread.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        adapters: AdapterPool | None = None,
        encodings: EncoderCache | None = None,
        new_proposer: NewProposer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._runner = runner
        self._adapters = adapters
        self._encodings = encodings or EncoderCache(ENCODINGS_BYTES, runner.config.model_dim)
        self._clock = clock
        self._cost = StepCost()
        self._scheduler = Scheduler(
            runner.limits,
            pages=runner.pages,
            rings=runner.rings,
            local_pages=runner.local_pages,
            cost=self._cost,
            clock=clock,
        )
        self._drafting = None
        if new_proposer is not None:
            told = {"longest": runner.limits.draft, "most_rows": MAX_DRAFT_ROWS, "cost": self._cost}
            self._drafting = Drafting(new_proposer, **told)
        self._live: dict[int, Live] = {}  # by the run's order
        self._order = 0
        self._stats = EngineStats(pages_total=runner.pages.num_pages - 1)
        self._worker = Worker(self.run_until_idle, self._fail_all)
        self._done = 0.0, 0.0  # when the last step was done, and the runner's compile_s then

    # -- for callers, any thread ---------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Longest sequence, prompt and answer together."""
        return self._runner.context

    def submit(self, request: Request) -> Handle:
        """Begin a request and return its handle; RequestError or CapacityError for what can never be computed."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Begin several requests: all of them, or none where one of them can never be computed."""
        for request in requests:
            self.check(request)
        handles = [Handle(request, self._cancel) for request in requests]
        for handle in handles:
            self._worker.do(lambda handle=handle: self._begin(handle.request, handle))
        return handles

    def stats(self) -> EngineStats:
        """Return the counts as they are now."""
        scheduler = self._scheduler
        return dataclasses.replace(
            self._stats,
            waiting=scheduler.num_waiting,
            running=scheduler.num_running,
            tokens_cached=scheduler.cached_tokens,
            preemptions=scheduler.preemptions,
            evictions=scheduler.evictions,
            drafts_proposed=self._drafting.proposed if self._drafting else 0,
            drafts_accepted=self._drafting.accepted if self._drafting else 0,
            pages_free=self._runner.pages.num_free,
        )

    def forget(self) -> None:
        """Empty the prefix cache."""
        self._worker.wait(self._scheduler.drop_cache)

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make every program that requests may need; afterwards none is compiled while one waits.

        progress(done, total) is called in the engine's thread. Call it before the first request.
        """
        self._worker.wait(lambda: self._runner.warm_up(progress))

    def close(self) -> None:
        """End every request and the thread; nothing can be submitted afterwards."""
        self._worker.close()

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """Hold an adapter under a name; one of the same name is replaced. Waits for the step that is running.

        An engine that was made without adapters makes room for MAX_ADAPTERS of this one's rank, 16 at least. Raises
        CapacityError where it does not fit.
        """
        self._worker.wait(lambda: self._load_adapter(name, adapter))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises RequestError if it is unknown, CapacityError while requests use it."""
        self._worker.wait(lambda: self._change_adapters(lambda: self._room_for_adapters(name).unload(name)))

    def _cancel(self, handle: Handle, index: int | None) -> None:
        if not handle.is_done and not self._worker.is_closed:
            self._worker.do(lambda: self._end(handle, "cancelled", index))

    def check(self, request: Request) -> None:
        """Raise RequestError or CapacityError for what this engine can never compute."""
        last = self._runner.vocab - 1
        images = [range(span.start, span.end) for span in request.spans]  # whose placeholder need not be a word
        for i, token_id in enumerate(request.prompt):
            if not 0 <= token_id <= last and not any(i in image for image in images):
                raise RequestError(f"prompt token {i} is {token_id}; this model's tokens are 0 to {last}.")
        if unknown := [token_id for token_id in request.choices if not 0 <= token_id <= last]:
            raise RequestError(f"choices name token {unknown[0]}; this model's tokens are 0 to {last}.")
        if bool(request.choices) != (request.kind == "choose"):
            got = f'{len(request.choices)} with kind "{request.kind}"'
            raise RequestError(f'choices go with kind "choose", which needs some; got {got}.')
        self._scheduler.check(request)
        RowSampler(request.params, (), vocab=self._runner.vocab)  # its parameters name tokens, too
        if request.adapter is not None:
            self._room_for_adapters(request.adapter).key(request.adapter)

    def _room_for_adapters(self, name: str) -> AdapterPool:
        if self._adapters is None:
            raise RequestError(f'no adapter named "{name}" is loaded; this engine has none.')
        return self._adapters

    def _load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        pool = self._adapters
        if pool is None:
            pool = self._adapters = AdapterPool(self._runner.config, slots=MAX_ADAPTERS, max_rank=max(adapter.rank, 16))
        gains = row_gains(self._runner.model, adapter) if adapter.is_dora else None
        self._change_adapters(lambda: pool.load(name, adapter, gains))

    def _change_adapters(self, change: Callable[[], object]) -> None:
        """Load or unload; what the prefix cache holds of an adapter that is gone is nobody's any more."""
        before = self._adapters.keys if self._adapters else frozenset()
        change()
        for key in before - (self._adapters.keys if self._adapters else frozenset()):
            self._scheduler.forget_adapter(key)

    # -- the engine's thread -------------------------------------------------------------------------------------

    def run_until_idle(self) -> bool:
        """Compute until there is nothing to do; return whether anything was done. For the engine's own thread."""
        in_flight: Pending | None = None
        worked = False
        while not self._worker.is_closed:
            # A step that needed a new program is likely followed by one that does, and making it would delay what this
            # one drew: a start would wait for the program of its second token (0.8 -> 1.5 s to the first for 270M).
            if in_flight is not None and (in_flight.is_first or not self._may_run_ahead()):
                self._finish(in_flight)
                in_flight = None
            begun = self._now()
            self._worker.take_commands()
            plan = self._plan()
            launched = None if plan is None else self._launch(plan)
            self._stats.host_s += between(begun, self._now())
            if in_flight is not None and not self._finish(in_flight):
                launched = None  # the cache was lost, and with it what was launched meanwhile
            if in_flight is None and plan is None and not self._worker.has_commands:
                assert not self._live, "the scheduler has requests and nothing to do for them"
                return worked
            in_flight, worked = launched, True
        return worked

    def _may_run_ahead(self) -> bool:
        """Whether the next step may be launched before this one is read.

        Not where any row would have to wait: it would miss that step and get one of its own, and rows that take turns
        share no weights.
        """
        return all(live.run.ahead for live in self._live.values())

    def _begin(self, request: Request, handle: Handle) -> None:
        slot = 0
        try:
            if request.adapter is not None and self._adapters is not None:
                slot = self._adapters.acquire(request.adapter)
                # What another load of the same name computed is not this one's.
                request = dataclasses.replace(request, adapter=self._adapters.key(request.adapter))
            runs = self._scheduler.submit(request, self._order)
        except GemworksError as error:
            if slot and self._adapters is not None and handle.request.adapter is not None:
                self._adapters.release(handle.request.adapter)
            handle.fail(error)
            return
        self._order += len(runs)
        self._stats.requests += 1
        for run in runs:
            fork = getattr(request.mask, "fork", None)
            told = {"vocab": self._runner.vocab, "answer": run.index, "mask": fork() if fork else request.mask}
            run.sampler, run.slot = RowSampler(request.params, request.prompt, **told), slot
            run.ahead = not run.sampler.needs_full
            scores = None if request.kind == "generate" else Scores(request)
            self._live[run.order] = Live(run, handle, self._now(), scores)
            if self._drafting is not None:
                self._drafting.add(run)

    def _plan(self) -> StepPlan | None:
        now = self._clock()
        for live in list(self._live.values()):
            deadline_s = live.run.request.deadline_s
            if deadline_s is not None and now >= deadline_s:
                self._scheduler.cancel(live.run)
                self._close_answer(live, "deadline")
        if self._drafting is not None:
            runs = [live.run for live in self._live.values()]
            self._drafting.prepare([run for run in runs if run.ring is not None and run.drawn])
        return self._scheduler.schedule(now)

    def _now(self) -> Moment:
        return time.perf_counter(), self._runner.compile_s

    def _launch(self, plan: StepPlan) -> Pending | None:
        """Start a plan; where that raises, its requests fail and None is returned."""
        begun = self._now()
        try:
            extra, see = self._extra_of(plan)
        except Exception as error:  # an image of the prompt: nobody else's
            self._fail(plan, error, plan.rows[-1:])
            return None
        try:
            pending = self._runner.launch(plan, extra, see)
        except Exception as error:
            self._fail(plan, error)
            return None
        self._scheduler.launched(plan)
        for row in plan.rows:
            live = self._live[row.run.order]
            live.started = live.started or begun
        return pending

    def _finish(self, pending: Pending) -> bool:
        """Read a step and tell its callers; False where that failed and the cache is lost."""
        begun = time.perf_counter()
        plan = pending.plan
        try:
            results = pending.read()
            states = self._states(pending)
        except Exception as error:
            return self._fail(plan, error)
        now = time.perf_counter()
        self._observe(plan, pending, now)
        self._stats.wait_s += now - begun
        for row, drawn in zip(plan.rows, results, strict=True):
            live = self._live.get(row.run.order)
            if live is not None:  # else it ended while this step was on its way
                self._advance(live, row, drawn, states)
        self._stats.host_s += time.perf_counter() - now
        return True

    def _states(self, pending: Pending) -> np.ndarray | jax.Array | None:
        row = pending.plan.prefill
        wanted = row is not None and row.run.request.kind != "generate"
        return jax.block_until_ready(pending.states()) if wanted else None

    def _observe(self, plan: StepPlan, pending: Pending, now: float) -> None:
        if not plan.rows:
            return
        # A step begins when it was launched and the one before was done; compiling is not the step's.
        done = now, self._runner.compile_s
        seconds = between(max((pending.launched_s, pending.compiled_s), self._done), done)
        self._done = done
        decoded = len(plan.decode) * pending.columns
        self._cost.observe(decoded, plan.prefill.count if plan.prefill else 0, seconds)
        stats = self._stats
        stats.steps += 1
        stats.step_s += seconds
        stats.rows_decoded += len(plan.decode)
        stats.tokens_prefilled += plan.prefill.count if plan.prefill else 0

    def _extra_of(self, plan: StepPlan) -> tuple[StepExtra | None, list[int] | None]:
        """Return what a step needs for image tokens and adapters, and what each token of its chunk may see."""
        soft = see = None
        if plan.prefill is not None and (spans := spans_in(plan.prefill)):
            columns = self._runner.columns_for(plan.prefill.count)
            soft, see = soft_tokens(plan.prefill, spans, self._encodings, columns)
        adapted = any(row.run.slot for row in plan.rows)
        adapters = self._adapters.adapters if adapted and self._adapters is not None else None
        return (None if soft is None and adapters is None else StepExtra(soft, adapters)), see

    def _advance(self, live: Live, row: RowPlan, drawn: list[SampleResult] | RequestError, states) -> None:
        """Note what a row computed, and tell its caller of the tokens that came out."""
        run = live.run
        if isinstance(drawn, RequestError):
            self._drop(live.handle, drawn)
            return
        if live.scores is not None:
            live.scores.add(self._runner, row, states)
        if row.start < run.prompt_tokens:
            live.prefilled += min(row.start + row.count, run.prompt_tokens) - row.start
        known = len(run.answer)
        ids = [result.token_id for result in drawn]
        if row.draft and self._drafting is not None:
            ids = self._drafting.verify(run, row.draft, ids)
        reason = self._scheduler.complete(row, ids)
        fresh = run.answer[known:]
        if fresh and live.first is None:
            live.first = self._now()
        for i, (token_id, result) in enumerate(zip(fresh, drawn, strict=False)):
            run.sampler.note(token_id)
            self._stats.tokens_drawn += 1
            ends = reason if reason != "stop" and i == len(fresh) - 1 else None
            live.handle.push(
                TokenEvent(token_id, result.logprob, ends, run.index), live.timings(self._runner.compile_s)
            )
        if reason is not None and (reason == "stop" or not fresh):
            self._close_answer(live, reason)
        elif reason is not None:
            self._forget(live)

    def _close_answer(self, live: Live, reason: FinishReason) -> None:
        """Send the event that ends an answer without a token of its own."""
        if live.scores is not None and reason == "stop":  # what is cut short is no result
            live.scores.hand_over(live.handle)
        live.handle.push(TokenEvent(None, None, reason, live.run.index), live.timings(self._runner.compile_s))
        self._forget(live)

    def _forget(self, live: Live) -> None:
        del self._live[live.run.order]
        if self._drafting is not None:
            self._drafting.forget(live.run)
        adapter = live.handle.request.adapter
        if adapter is None or self._adapters is None:
            return
        if not any(other.handle is live.handle for other in self._live.values()):  # the last of its n answers
            self._adapters.release(adapter)

    def _end(self, handle: Handle, reason: FinishReason, index: int | None = None) -> None:
        """End what is left of a request now, or of one of its answers."""
        ours = [live for live in self._live.values() if live.handle is handle]
        for live in [live for live in ours if index is None or live.run.index == index]:
            self._scheduler.cancel(live.run)
            self._close_answer(live, reason)

    # -- failures ------------------------------------------------------------------------------------------------

    def _fail(self, plan: StepPlan, error: Exception, rows: Sequence[RowPlan] | None = None) -> bool:
        """End the requests of a step that raised, or those of `rows`; the others go on.

        They are recomputed where the cache was lost with the step: False then.
        """
        runs = {row.run.order: row.run for row in (plan.rows if rows is None else rows)}
        names = ", ".join(sorted({run.request.name or f"#{run.order}" for run in runs.values()}))
        message = f"a step of the engine raised {type(error).__name__}: {error}\nIt ends these requests: {names}."
        failure = error if isinstance(error, GemworksError) else BackendError(message)
        self._scheduler.failed(plan, list(runs.values()))
        is_lost = not self._runner.is_intact() or isinstance(error, jax.errors.JaxRuntimeError)
        if is_lost:
            self._runner.reset()
            self._scheduler.lost()
        for live in [live for live in map(self._live.get, runs) if live is not None]:
            self._drop(live.handle, failure)
        return not is_lost

    def _drop(self, handle: Handle, error: GemworksError) -> None:
        """End a request with an error."""
        handle.fail(error)
        for live in [live for live in self._live.values() if live.handle is handle]:
            self._scheduler.cancel(live.run)
            self._forget(live)

    def _fail_all(self, error: BaseException) -> None:
        """End everything: the engine itself is wrong, or closed."""
        for live in list(self._live.values()):
            live.handle.fail(error)
            self._scheduler.cancel(live.run)
            self._forget(live)
