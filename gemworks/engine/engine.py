"""The offline engine: one sequence at a time, token ids in, events out.

The sequence stays in the cache after its answer, so a prompt that continues it (the next turn of a chat) computes only
what is new. Many sequences at once are the scheduler's; the types are the same.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from gemworks.engine.batch import Row
from gemworks.engine.runner import PREFILL_COLUMNS, Runner
from gemworks.engine.sampler import RowSampler
from gemworks.engine.types import SamplingParams, Timings, TokenEvent, TokenLogprob
from gemworks.errors import RequestError

# Rows of 262,144 fp32 logits that are alive at once while a prompt is scored: 16 MiB.
SCORE_ROWS = 16


class Engine:
    """Generates and scores with one `Runner`. One thread. `vocab`: ids from there on are never sampled or accepted."""

    def __init__(self, runner: Runner, *, vocab: int):
        self._runner = runner
        self._vocab = vocab
        self._sequence = runner.new_sequence()
        self._latest = 0  # number of the answer that owns the sequence
        self.timings = Timings()  # of the last answer, complete when its last event is out

    @property
    def context(self) -> int:
        """Longest sequence, prompt and answer together."""
        return self._runner.context

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[TokenEvent]:
        """Yield the answer token by token; closing the iterator stops it. Errors are raised before the first event."""
        prompt = list(prompt)
        limit = self._answer_limit(prompt, params)
        sampler = RowSampler(params, prompt, vocab=self._vocab)
        return self._answer(prompt, limit, sampler, frozenset(params.stop_ids))

    def score(self, prompt: Sequence[int], *, top: int = 0) -> list[TokenLogprob | None]:
        """Return the log-probability of every prompt token given those before it; None for the first."""
        prompt = list(prompt)
        self._check_prompt(prompt)
        self._latest += 1
        self._sequence.rewind(0)
        scores: list[TokenLogprob | None] = [None]
        for start in range(0, len(prompt) - 1, PREFILL_COLUMNS[-1]):
            ids = prompt[start : min(start + PREFILL_COLUMNS[-1], len(prompt) - 1)]
            h_CD = self._runner.forward([Row(self._sequence, ids)], every_token=True)
            targets = np.asarray(prompt[start + 1 : start + 1 + len(ids)], np.int32)
            scores += self._score_rows(h_CD, targets, top)
        return scores

    def forget(self) -> None:
        """Drop the cached sequence."""
        self._sequence.rewind(0)

    def _answer(self, prompt, limit: int, sampler: RowSampler, stop_ids: frozenset[int]) -> Iterator[TokenEvent]:
        runner, sequence = self._runner, self._sequence
        self._latest += 1
        this = self._latest
        started, compiled = time.perf_counter(), runner.compile_s
        before = compiled
        cached = sequence.keep_prefix_of(prompt)
        for start in range(cached, len(prompt), PREFILL_COLUMNS[-1]):
            h_1D = runner.forward([Row(sequence, prompt[start : start + PREFILL_COLUMNS[-1]])])
        [chosen] = runner.choose(h_1D, [sampler])
        # Compiling happens once a process, so a rate that counted it would say nothing about the next prompt.
        prefill_s = time.perf_counter() - started - (runner.compile_s - compiled)
        started, compiled = time.perf_counter(), runner.compile_s
        for count in range(1, limit + 1):
            decode_s = time.perf_counter() - started - (runner.compile_s - compiled)
            self.timings = Timings(
                compile_s=runner.compile_s - before,
                prefill_s=prefill_s,
                decode_s=decode_s,
                prefill_tokens=len(prompt) - cached,
                decode_tokens=count - 1,
                cached_tokens=cached,
            )
            if chosen.token_id in stop_ids:
                yield TokenEvent(None, None, "stop")
                return
            sampler.note(chosen.token_id)
            yield TokenEvent(chosen.token_id, chosen.logprob, "length" if count == limit else None)
            if this != self._latest:
                raise RequestError("this answer was ended by a newer request to the same model; finish one, then ask.")
            if count < limit:
                [chosen] = runner.forward_and_choose([Row(sequence, [chosen.token_id])], [sampler])

    def _answer_limit(self, prompt: list[int], params: SamplingParams) -> int:
        """Return how many tokens the answer may have, or refuse: a request that cannot fit is never cut."""
        self._check_prompt(prompt)
        room = self.context - len(prompt)
        wanted = params.max_tokens
        if room < 1 or (wanted is not None and wanted > room):
            extra = wanted or 1
            asked = f"{extra:,} max_tokens" if wanted else "at least 1 for the answer"
            raise RequestError(
                f"this request needs {len(prompt) + extra:,} tokens ({len(prompt):,} prompt + {asked}); "
                f"the context holds {self.context:,}.\n"
                f"Shorten the prompt by {len(prompt) + extra - self.context:,} tokens, lower max_tokens, "
                f"or load the model with a larger context."
            )
        return wanted or room

    def _check_prompt(self, prompt: list[int]) -> None:
        if not prompt:
            raise RequestError("the prompt has no tokens; at least one is needed.")
        if len(prompt) > self.context:
            raise RequestError(
                f"the prompt has {len(prompt):,} tokens; the context holds {self.context:,}.\n"
                f"Shorten it by {len(prompt) - self.context:,} tokens, or load the model with a larger context."
            )
        for i, token_id in enumerate(prompt):
            if not 0 <= token_id < self._vocab:
                raise RequestError(f"prompt token {i} is {token_id}; this model's tokens are 0 to {self._vocab - 1}.")

    def _score_rows(self, h_CD, targets: np.ndarray, top: int) -> list[TokenLogprob]:
        """Score targets[t] under h_CD[t] in blocks of SCORE_ROWS, so that [tokens, vocabulary] never exists."""
        scores = []
        for start in range(0, len(targets), SCORE_ROWS):
            block = targets[start : start + SCORE_ROWS]
            padded = np.zeros(SCORE_ROWS, np.int32)
            padded[: len(block)] = block
            rows = np.minimum(np.arange(start, start + SCORE_ROWS), h_CD.shape[0] - 1)
            chosen, values, ids = (
                np.asarray(x) for x in self._runner.score(h_CD[rows], padded, vocab=self._vocab, top=top)
            )
            for i, token_id in enumerate(block):
                best = tuple((int(a), float(b)) for a, b in zip(ids[i], values[i], strict=True))[:top]
                scores.append(TokenLogprob(int(token_id), float(chosen[i]), best))
        return scores
