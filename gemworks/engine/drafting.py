"""Speculation in the engine: which runs carry a draft in the next step.

What is guessed, and when it pays, is speculative.py's.

A draft needs the tokens before it, so while any run hopes for one, no step is launched before the last one was read.
Rows with drafts and rows without share a step.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gemworks.engine.cost import StepCost
from gemworks.engine.plan import Run
from gemworks.engine.speculative import Proposer, Speculator, can_speculate, choose_length
from gemworks.engine.step import RowInput, StepShape, pack

if TYPE_CHECKING:
    from gemworks.engine.runner import Runner
    from gemworks.engine.sequence import Sequence
    from gemworks.ops.sampling import SampleParams

NewProposer = Callable[[Run], Proposer]


class Drafting:
    """The speculators of an engine's runs. One thread: the engine's."""

    def __init__(self, new_proposer: NewProposer, *, longest: int, most_rows: int, cost: StepCost):
        self._new_proposer, self._longest, self._most_rows, self._cost = new_proposer, longest, most_rows, cost
        self._speculators: dict[int, Speculator] = {}  # by the run's order
        self.proposed = self.accepted = 0

    def add(self, run: Run) -> None:
        """Begin to guess for a run, if its request allows it."""
        if run.request.kind == "generate" and can_speculate(run.sampler) and self._longest:
            self._speculators[run.order] = Speculator(self._new_proposer(run))

    def forget(self, run: Run) -> None:
        """A run has ended."""
        if (speculator := self._speculators.pop(run.order, None)) is not None:
            speculator.close()

    def prepare(self, decoding: list[Run]) -> None:
        """Give drafts to runs whose last draw is known, and set which runs may be launched ahead."""
        ours = [(run, self._speculators[run.order]) for run in decoding if run.order in self._speculators]
        known = [(run, one) for run, one in ours if run.drawn == len(run.answer)]
        for run, speculator in ours:
            speculator.observe(run.tokens)
            run.draft, run.ahead = [], True
        if not ours or len(decoding) > self._most_rows:
            return
        choice = choose_length([one for _, one in ours], len(decoding), self._seconds, longest=self._longest)
        if not choice.length:
            return
        for run, speculator in ours:
            if speculator.expected(choice.length) > 0:
                run.ahead = False
        for run, speculator in known:
            room = min(run.limit - len(run.answer), self._longest + 1)
            run.draft = speculator.draft(run.tokens, choice, room)
            run.ahead = not run.draft

    def verify(self, run: Run, draft: tuple[int, ...], drawn: list[int]) -> list[int]:
        """Return what is accepted of a draft, given what the model drew at its places and after it."""
        accepted = self._speculators[run.order].verify(draft, drawn)
        self.proposed += len(draft)
        self.accepted += len(accepted) - 1
        return accepted

    def _seconds(self, rows: int, columns: int) -> float:
        return self._cost.predict(rows * columns, 0)


class DraftingRunner:
    """A `Runner` of a smaller model as `speculative.DraftModel` uses it: texts of its own, a token at a time."""

    def __init__(self, runner: "Runner"):
        self._runner = runner
        self.vocab, self.context, self.chunk = runner.vocab, runner.context, runner.limits.chunks[-1]

    def new_sequence(self) -> "Sequence":
        """Return an empty text; CapacityError where all are in use."""
        return self._runner.new_sequence()

    def next_token(self, sequence: "Sequence", ids: list[int], params: "SampleParams") -> int:
        """Store the next tokens of a text and return the id drawn after them."""
        sequence.reserve(sequence.stored + len(ids))
        row = RowInput(ids, sequence.stored, sequence.ring, sequence.table)
        width = self._runner.table_width
        if len(ids) == 1:
            control = pack(shape := StepShape(1, 1, 0, width), [row], None, params)
        else:
            control = pack(shape := StepShape(0, 1, self._runner.columns_for(len(ids)), width), [], row, params)
        drawn = int(np.asarray(self._runner.call(shape, control).drawn_S)[-1])
        sequence.append(ids)
        return drawn
