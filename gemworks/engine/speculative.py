"""Speculative decoding: guess the next tokens cheaply, let the model check them in one step, keep what it would draw.

    text       a b c                     known; a step would compute c and draw what follows it
    draft            x y z               guessed
    step           c x y z               four columns instead of one, hardly slower where weights are what takes time
    drawn            X Y Z W             what the model draws after each, given all before
    accepted         X Y                 if x == X and y != Y: the draft as far as it is right, and one token more

Lossless: a draw is a function of (seed, index of the answer token, logits) and of nothing else (ops/xla/sample.py), and
every accepted token was drawn at its own index from the logits of the true text before it. So the text with speculation
is the text without, greedy or seeded, to the token, as far as the logits of a step do not depend on its columns.

Against Leviathan et al. 2023, Algorithm 1, who accept d, drawn from q, with min(1, p(d) / q(d)) and draw anew from the
rest otherwise: for a guess without a distribution (q is all on d) they accept with p(d), and so do we, since the model
draws d with p(d). With a drafting model they accept with 1 - TV(p, q) on average, the most that two draws can agree. We
let it draw with the same uniform number, which agrees at most as often, and far more often than two separate draws do;
in return a seed gives one text whatever drafts, and nothing but ids is needed from the drafting side.

Not for requests with penalties or masks (a draw then needs the tokens before it, not only their logits), nor for those
that `full_choice` draws: `can_speculate`.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemworks.engine.sampler import RowSampler, row_params
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.errors import CapacityError
from gemworks.ops.sampling import SampleParams


class Proposer(Protocol):
    """Guesses the next tokens of one text. Wrong guesses cost time, never correctness."""

    # Whether a guess costs microseconds, so that one may be made for every token just to see whether it is right.
    is_free: bool

    def propose(self, tokens: list[int], k: int) -> list[int]:
        """Return at most k ids that may follow `tokens`, the text so far, which only grows from call to call."""
        ...

    def read(self, tokens: list[int]) -> None:
        """Take in a text that is new, or much longer than at the last call, so that the next guess is quick."""
        ...

    def close(self) -> None:
        """Give back what the text holds; no more calls."""
        ...


def can_speculate(sampler: RowSampler) -> bool:
    """Whether drafts of a request can be checked by the step itself."""
    return not sampler.needs_full


def verify(draft: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """Return the accepted ids: the draft as far as it is what the model drew, and the model's own next token.

    drawn: what it drew at each of the 1 + len(draft) places.
    """
    assert len(drawn) == len(draft) + 1, (draft, drawn)
    right = 0
    while right < len(draft) and draft[right] == drawn[right]:
        right += 1
    return list(drawn[: right + 1])


class PromptLookup:
    """Copies what followed the longest earlier match of the last tokens, in prompt and answer (Saxena 2023).

    An index of trigrams, not a search: `_last` has the latest place of each, `_before` for every place the one before
    that had the same. A token costs one entry. Among the `_LOOK_BACK` latest places of the trigram the longest match
    wins, of equal ones the latest. 45 bytes a token where trigrams repeat, 152 where none does; 1 us a token.
    """

    is_free = True
    _GRAM = 3
    _LOOK_BACK = 8
    _LONGEST = 16  # a longer match is not told from a longer one

    def __init__(self, vocab: int):
        """`vocab`: ids from there on (image tokens) are never proposed."""
        self._vocab = vocab
        self._last: dict[tuple[int, ...], int] = {}  # trigram -> place of the token after it
        self._before = array("i")  # at each place, the earlier place with the same three tokens before it, or -1

    def propose(self, tokens: list[int], k: int) -> list[int]:
        """Return what followed the match, over its own end again where the text repeats itself."""
        n = self._GRAM
        for place in range(len(self._before), len(tokens)):
            gram = tuple(tokens[place - n : place]) if place >= n else None
            self._before.append(-1 if gram is None else self._last.get(gram, -1))
            if gram is not None:
                self._last[gram] = place
        place = self._last.get(tuple(tokens[-n:]), -1) if len(tokens) >= n else -1
        best, longest = -1, 0
        for _ in range(self._LOOK_BACK):
            if place < 0:
                break
            length = self._match(tokens, place)
            if length > longest:
                best, longest = place, length
            place = self._before[place]
        if best < 0:
            return []
        draft: list[int] = []
        period = len(tokens) - best
        for i in range(k):
            token = draft[i - period] if i >= period else tokens[best + i]
            if token >= self._vocab:
                break
            draft.append(token)
        return draft

    def read(self, tokens: list[int]) -> None:
        """Nothing: `propose` is quick."""

    def close(self) -> None:
        """Forget the text."""
        self._last, self._before = {}, array("i")

    def _match(self, tokens: list[int], place: int) -> int:
        """Return how many tokens before `place` equal the last ones of the text."""
        length, most = self._GRAM, min(place, self._LONGEST)
        while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length


class DraftSequence(Protocol):
    """A text in the drafting model's cache (engine/sequence.py)."""

    @property
    def stored(self) -> int:
        """Tokens in the cache."""
        ...

    def can_rewind(self, length: int) -> bool:
        """Whether it can be cut to `length` tokens."""
        ...

    def rewind(self, length: int) -> None:
        """Cut it."""
        ...

    def free(self) -> None:
        """Give everything back."""
        ...


class DraftRunner(Protocol):
    """The little that a drafting model must offer. vocab: rows of its table, and ids from there on are never drawn."""

    vocab: int
    context: int
    chunk: int  # tokens one call may store

    def new_sequence(self) -> Any:
        """Return an empty DraftSequence; CapacityError where there is no room."""
        ...

    def next_token(self, sequence: Any, ids: list[int], params: SampleParams) -> int:
        """Store the next tokens of a sequence and return the id drawn after them, by one row of params."""
        ...


class DraftModel:
    """Lets a smaller model guess, one text of it. Draws as the request does: same seed, same index, same filters.

    The drafting model keeps the text in its own cache: before a draft it computes what was accepted since, and what was
    not it forgets. Vocabularies may differ in rows (262,144 and 262,208 of one tokenizer): ids that the drafting model
    has no row for are replaced by `unknown` when it reads, and ids the target does not know are never proposed.
    """

    is_free = False

    def __init__(self, runner: DraftRunner, sampler: RowSampler, *, vocab: int, unknown: int = 0):
        """`vocab` is the target's."""
        self._runner, self._sampler = runner, sampler
        self._vocab, self._unknown = vocab, unknown
        self._sequence: Any = None
        self._known = 0  # tokens of the text at the last call
        self._guessed: list[int] = []  # what is stored after them

    def propose(self, tokens: list[int], k: int) -> list[int]:
        """Return k drawn ids, or fewer where the drafting model's context or memory ends.

        The request's sampler must have noted every answer token of `tokens`.
        """
        k = min(k, self._runner.context - len(tokens) + 1)
        if k <= 0 or not self._catch_up(tokens):
            return []
        draft: list[int] = []
        try:
            drawn = self._store(tokens[self._sequence.stored :], 0)
            while drawn < self._vocab:
                draft.append(drawn)
                if len(draft) == k:
                    break
                drawn = self._store([drawn], len(draft))
        except CapacityError:
            self.close()
            return []
        self._known, self._guessed = len(tokens), draft[: self._sequence.stored - len(tokens)]
        return draft

    def read(self, tokens: list[int]) -> None:
        """Compute all of the text but its end, where that is more than a draft leaves to compute."""
        if len(tokens) > self._runner.context or not self._catch_up(tokens):
            return
        behind = tokens[self._sequence.stored : -1]
        if len(behind) > DRAFT_LENGTHS[-1] + 1:
            try:
                self._store(behind, 0)
            except CapacityError:
                self.close()
            else:
                self._known = self._sequence.stored

    def close(self) -> None:
        """Give the cache back."""
        if self._sequence is not None:
            self._sequence.free()
        self._sequence, self._known, self._guessed = None, 0, []

    def _catch_up(self, tokens: list[int]) -> bool:
        """Cut the cache to what is true of it, and to less than the text; false where there is no room for one."""
        if self._sequence is None:
            try:
                self._sequence = self._runner.new_sequence()
            except CapacityError:
                return False
            return True
        right = self._known
        for guess, token in zip(self._guessed, tokens[self._known :], strict=False):
            if guess != token:
                break
            right += 1
        right = min(right, self._sequence.stored, len(tokens) - 1)
        if right < self._sequence.stored:
            self._sequence.rewind(right if self._sequence.can_rewind(right) else 0)
        self._known, self._guessed = self._sequence.stored, []
        return True

    def _store(self, ids: list[int], offset: int) -> int:
        """Store ids and return what is drawn after them, as the answer token at `offset` from the next."""
        params, drawn = row_params([self._sampler], [offset]), -1
        for start in range(0, len(ids), self._runner.chunk):
            part = [i if i < self._runner.vocab else self._unknown for i in ids[start : start + self._runner.chunk]]
            drawn = self._runner.next_token(self._sequence, part, params)
        return drawn


class _Rate:
    """How often something was true lately, from a first guess that weighs as much as two cases."""

    _MEMORY = 0.85  # of a case after the next: half is forgotten after 4

    def __init__(self, first: float):
        self._true, self._all = 2.0 * first, 2.0

    def note(self, happened: bool) -> None:
        self._true = self._true * self._MEMORY + happened
        self._all = self._all * self._MEMORY + 1.0

    @property
    def value(self) -> float:
        return self._true / self._all


class _Acceptance:
    """Chance that a guess is right, after one that was and after one that was not.

    Two numbers, because copying is all or nothing: a match that holds for one token mostly holds for seven.
    """

    def __init__(self, first: float, next: float):
        self._first, self._next = _Rate(first), _Rate(next)
        self._was_right = False

    def note(self, right: bool) -> None:
        """Note how a guess turned out; guesses come in the order of the text."""
        (self._next if self._was_right else self._first).note(right)
        self._was_right = right

    def skip(self) -> None:
        """Note that there was nothing to guess from."""
        self._was_right = False

    def expected(self, k: int) -> float:
        """Return how many of k tokens are likely to be accepted."""
        chance, total = (self._next if self._was_right else self._first).value, 0.0
        for _ in range(k):
            total += chance
            chance *= self._next.value
        return total


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """What the next step's drafts may be. length 0: none. Seconds: what they add for each text that has one.

    token_s is what a token of one text costs without drafts, so what an accepted one saves.
    """

    length: int
    extra_s: float
    token_s: float


class Speculator:
    """Decides for one text whether guesses pay, from what came of them.

    A free proposer guesses the next token after every token, whether drafts are on or not, and is compared with what
    comes: on text where it fails no step is ever made wider. A drafting model can only be tried: where it does not pay
    it is tried again after 16 tokens, then 32, and so on to 1,024.

    Drafts are paid from a credit in seconds: at first what one step takes, then 1 % of all decoding, and what accepted
    tokens save. So whatever the text, they lose at most that. After every read of a step, in this order:

        speculator.observe(run.tokens)              of every run
        choice = choose_length(speculators, rows, cost)
        run.draft = speculator.draft(run.tokens, choice, room)      of those it may be launched for, room = tokens left
        ids = speculator.verify(run.draft, drawn)   when that step was read
    """

    _FIRST_WAIT, _LONGEST_WAIT = 16, 1024
    _ALLOWANCE = 0.01
    _MOST_CREDIT = 4.0  # in steps

    def __init__(self, proposer: Proposer, *, clock: Callable[[], float] = time.perf_counter):
        self._proposer, self._clock = proposer, clock
        self._rates = self._fresh()
        self._seen = 0
        self._guess: int | None = None
        self._credit_s: float | None = None  # None: no step's time is known yet
        self._token_s = 0.0
        self._guess_s = 0.0  # of the proposer, a token
        self._wait, self._idle = self._FIRST_WAIT, 0
        self._is_trial, self._has_read = False, False
        self.proposed, self.accepted = 0, 0

    def observe(self, tokens: list[int]) -> None:
        """Note the text as it is now, prompt included: what came since the last call was right or not as guessed."""
        new = len(tokens) - self._seen
        if self._seen and new:
            self._idle += new
            if self._credit_s is not None:
                self._add_credit(self._ALLOWANCE * self._token_s * new)
            if self._guess is not None:
                self._rates.note(self._guess == tokens[self._seen])
        self._seen = len(tokens)
        if self._proposer.is_free:
            self._guess = next(iter(self._proposer.propose(tokens, 1)), None)
            if self._guess is None:
                self._rates.skip()

    def expected(self, k: int) -> float:
        """Return how many tokens of a draft of k are likely to be accepted; 0 where there is nothing to guess from."""
        if self._proposer.is_free:
            return 0.0 if self._guess is None else self._rates.expected(k)
        return (self._fresh() if self._idle >= self._wait else self._rates).expected(k)

    def guess_s(self, k: int) -> float:
        """Return the seconds that the proposer needs for a draft of k."""
        return self._guess_s * k

    def affords(self, extra_s: float, token_s: float) -> bool:
        """Whether a draft may lose that many seconds. token_s: see DraftChoice."""
        self._token_s = token_s
        if self._credit_s is None:
            self._credit_s = token_s
        return self._credit_s >= extra_s

    def draft(self, tokens: list[int], choice: DraftChoice, room: int) -> list[int]:
        """Return a draft for the next step, maybe none. room: answer tokens that are still allowed, the model's too."""
        k = min(choice.length, room - 1)
        if k <= 0 or self.expected(k) < _LEAST_EXPECTED or not self.affords(choice.extra_s, choice.token_s):
            return []
        started = self._clock()
        self._proposer.read(tokens)
        ready = self._clock()
        draft = self._proposer.propose(tokens, k)
        done = self._clock()
        if not self._proposer.is_free:
            self._guess_s = (done - ready) / max(len(draft), 1)
            self._is_trial = self._idle >= self._wait
            self._idle = 0
        # Reading the prompt is an investment: charged to the credit, it would keep drafts from ever being tried.
        self._add_credit(-(done - (started if self._has_read else ready)) - (choice.extra_s if draft else 0.0))
        self._has_read = True
        return draft

    def verify(self, draft: Sequence[int], drawn: Sequence[int]) -> list[int]:
        """Return the accepted ids (see the function of that name) and learn from them."""
        accepted = verify(draft, drawn)
        if draft:
            right = len(accepted) - 1
            self.proposed += len(draft)
            self.accepted += right
            self._add_credit(right * self._token_s)
            if self._is_trial:
                self._end_trial(right > 0)
            for i in range(min(right + 1, len(draft))):
                self._rates.note(i < right)
            self._guess = None
        return accepted

    def close(self) -> None:
        """Give back what the proposer holds."""
        self._proposer.close()

    def _fresh(self) -> _Acceptance:
        # A proposer that is watched for free must show that it is right; one that can only be tried must be tried.
        return _Acceptance(0.0, 0.5) if self._proposer.is_free else _Acceptance(0.7, 0.7)

    def _end_trial(self, worked: bool) -> None:
        self._is_trial = False
        if worked:
            self._rates, self._wait = self._fresh(), self._FIRST_WAIT
        else:
            self._wait = min(2 * self._wait, self._LONGEST_WAIT)

    def _add_credit(self, seconds: float) -> None:
        self._credit_s = min((self._credit_s or 0.0) + seconds, self._MOST_CREDIT * self._token_s)


# A text with less to hope for does not take part in a step's drafts, so that its steps may be launched ahead.
_LEAST_EXPECTED = 0.2
# Drafts must promise this much more tokens a second: a step with drafts is not launched before the last one is read.
_LEAST_GAIN = 1.05


def choose_length(
    speculators: Sequence[Speculator],
    rows: int,
    cost: Callable[[int, int], float],
    *,
    longest: int = DRAFT_LENGTHS[-1],
) -> DraftChoice:
    """Return the draft length of the next step: what is likely to give most tokens a second.

    rows: that decode, those without a speculator too, since they all get the columns. cost(rows, columns): seconds of a
    step. longest: draft that a step may carry.
    """
    base_s = cost(rows, 1)
    token_s = base_s / rows
    best, best_gain = DraftChoice(0, 0.0, token_s), _LEAST_GAIN
    for k in (length for length in DRAFT_LENGTHS if length <= longest):
        able = [s for s in speculators if s.expected(k) >= _LEAST_EXPECTED]
        if not able:
            continue
        extra_s = (cost(rows, k + 1) - base_s) / len(able)
        able = [s for s in able if s.affords(extra_s + s.guess_s(k), token_s)]
        if not able:
            continue
        extra_s = (cost(rows, k + 1) - base_s) / len(able)
        tokens = rows + sum(s.expected(k) for s in able)
        seconds = base_s + extra_s * len(able) + sum(s.guess_s(k) for s in able)
        gain = tokens / seconds * token_s
        if gain > best_gain:
            best, best_gain = DraftChoice(k, extra_s, token_s), gain
    return best
