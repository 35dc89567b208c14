"""What a request that draws nothing collects from its chunks: log-probabilities, or the mean of its states."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gemworks.engine.plan import RowPlan
from gemworks.engine.types import Request, TokenLogprob

if TYPE_CHECKING:
    from gemworks.engine.handle import Handle
    from gemworks.engine.runner import Runner

# Rows of 262,144 fp32 logits that are alive at once while a prompt is scored: 16 MiB.
SCORE_ROWS = 16


class Scores:
    """The results of one request of kind "score" or "embed"."""

    def __init__(self, request: Request):
        self._request = request
        self._scores: list[TokenLogprob | None] = [None] * len(request.prompt)
        self._total_D: Any = 0.0

    def add(self, runner: "Runner", row: RowPlan, states_PD: Any) -> None:
        """Collect from a chunk's hidden states, [P, D] with padding at the end."""
        h_CD = np.asarray(states_PD)[: row.count]
        if self._request.kind == "embed":
            if row.start == 0:  # again, where the request was preempted or the cache was lost: it takes nothing from it
                self._total_D = 0.0
            self._total_D = self._total_D + h_CD.astype(np.float64).sum(axis=0)
            return
        if self._request.kind == "choose":
            if row.start + row.count == len(self._request.prompt):
                self._choose(runner, h_CD[-1])
            return
        # The state of a position tells of the token after it.
        first = max(row.start, self._request.score_from - 1)
        last = min(row.start + row.count, len(self._request.prompt) - 1)
        for at in range(first, last, SCORE_ROWS):
            self._score(runner, h_CD[at - row.start : min(at + SCORE_ROWS, last) - row.start], at + 1)

    def hand_over(self, handle: "Handle") -> None:
        """Give the results to the request's handle."""
        if self._request.kind == "embed":
            handle.embedding = np.asarray(self._total_D / len(self._request.prompt), np.float32)
        else:
            handle.scores = self._scores

    def _choose(self, runner: "Runner", h_D: np.ndarray) -> None:
        """Score each choice under the last state of the prompt."""
        choices, self._scores = self._request.choices, []
        states_SD = np.tile(h_D.astype(np.float32), (SCORE_ROWS, 1))
        for at in range(0, len(choices), SCORE_ROWS):
            part = choices[at : at + SCORE_ROWS]
            targets = np.zeros(SCORE_ROWS, np.int32)
            targets[: len(part)] = part
            chosen, _, _ = (np.asarray(x) for x in runner.score(states_SD, targets))
            self._scores += [TokenLogprob(one, float(chosen[i])) for i, one in enumerate(part)]

    def _score(self, runner: "Runner", h_nD: np.ndarray, position: int) -> None:
        """Score the tokens at `position` on under the states before them."""
        asked = self._request.params.top_logprobs
        targets = np.zeros(SCORE_ROWS, np.int32)
        targets[: len(h_nD)] = self._request.prompt[position : position + len(h_nD)]
        padded_SD = np.zeros((SCORE_ROWS, h_nD.shape[1]), np.float32)
        padded_SD[: len(h_nD)] = h_nD
        chosen, values, ids = (np.asarray(x) for x in runner.score(padded_SD, targets))
        for i in range(len(h_nD)):
            best = tuple((int(a), float(b)) for a, b in zip(ids[i], values[i], strict=True))[:asked]
            self._scores[position + i] = TokenLogprob(int(targets[i]), float(chosen[i]), best)
