"""What the scheduler asks of the runner: which tokens of which runs the next step computes, and what it copies first.

Plain Python; no jax. A step has two parts that share every matrix product:

    decode     up to max_sequences rows of 1 column (1 + k where a row carries a draft to verify)
    prefill    one row of up to `chunk` columns: the next part of one prompt

Actions move keys and values between a sequence's own storage and the prefix cache (prefix.py). Steps and actions run on
the device in the order they are launched, so a page or ring that is freed after a step was launched may be given to the
next one at once.
"""

from dataclasses import dataclass, field
from typing import Any

from gemworks.engine.types import Request


@dataclass(slots=True, eq=False)
class Run:
    """One answer (or one text to score) on its way: what it has, and how far it is.

    tokens     prompt and answer tokens that are known
    computed   tokens whose keys and values are stored once every launched step is done
    drawn      answer tokens that launched steps draw; at most one more than are known (`tokens` lags by a step)

    The next token to compute is tokens[computed]; where computed == len(tokens), it is the one the last launched step
    draws, and the device has it (`Runner`'s last token of each ring). `sampler` is the engine's, the scheduler only
    carries it. `ahead` allows a step to be launched before the one before it was read: not where a draw needs the host.
    """

    request: Request
    index: int  # which of the request's n answers
    tokens: list[int]
    limit: int  # answer tokens at most; 0 for score and embed
    order: int  # of arrival, unique
    ring: int | None = None  # None: waiting
    table: list[int] = field(default_factory=list)
    computed: int = 0
    drawn: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache when first admitted
    ahead: bool = True
    draft: list[int] = field(default_factory=list)  # set by the engine before `schedule`, used up by it
    sampler: Any = None
    slot: int = 0  # of its LoRA adapter, 0 without

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def answer(self) -> list[int]:
        """Answer tokens that are known."""
        return self.tokens[self.prompt_tokens :]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Tokens [start, start + count) of a run, of which the last len(draft) are a draft; `draws`: a token comes out."""

    run: Run
    start: int
    count: int
    draws: bool
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CopyPage:
    """Copy page `source` of every global layer to `target`: a sequence writes into a page that others share."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class LocalPage:
    """Positions [index * page_size, + count) of a sequence's local layers, kept in `page` of the local page pool.

    first: where a ring is saved, the offset in the page from which on; what stands before it stays.
    """

    index: int
    page: int
    count: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class LoadRing:
    """Fill a ring from local pages, in this order (a later one may take the slots of an earlier one)."""

    ring: int
    pages: tuple[LocalPage, ...]


@dataclass(frozen=True, slots=True)
class SaveRing:
    """Copy positions that a ring holds now to local pages."""

    ring: int
    pages: tuple[LocalPage, ...]


Action = CopyPage | LoadRing | SaveRing


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Actions, then the rows' computation, then actions. Without rows it is housekeeping only."""

    before: tuple[Action, ...] = ()
    decode: tuple[RowPlan, ...] = ()
    prefill: RowPlan | None = None
    after: tuple[Action, ...] = ()

    @property
    def rows(self) -> tuple[RowPlan, ...]:
        """Every row, the prefill row last."""
        return self.decode + (() if self.prefill is None else (self.prefill,))

    @property
    def tokens(self) -> int:
        """Tokens computed, without padding."""
        return sum(row.count for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an engine was built for. Sizes in tokens unless said.

    window None: no local layers. slots: positions a ring holds, a multiple of page_size, at least window + drafts.
    chunks: columns a prefill row may be compiled for, ascending. draft: longest draft a row may carry.
    """

    max_sequences: int
    context: int
    page_size: int
    window: int | None
    slots: int
    chunks: tuple[int, ...]
    draft: int = 0
