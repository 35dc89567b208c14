"""A model whose every probability can be listed, decoded with and without speculation; shared by tests of that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.engine.sampler import RowSampler, fast_choice, row_params
from gemworks.engine.speculative import verify
from gemworks.engine.types import SamplingParams
from gemworks.errors import CapacityError

WIDTH = 8  # columns of a step here


class TableModel:
    """A model whose logits are a table by the last two tokens: small enough that every probability can be listed."""

    def __init__(self, vocab: int, seed: int, *, spread: float = 2.0, rows: int | None = None):
        self.vocab, self.rows = vocab, rows or vocab
        self.table = np.random.default_rng(seed).normal(0, spread, (vocab, vocab, self.rows)).astype(np.float32)

    def draws(self, text: list[int], sampler: RowSampler, draft: list[int]) -> list[int]:
        """Return what is drawn after the text and after each token of the draft, as one step computes it."""
        known = [*text, *draft]
        last = [known[: len(text) + j][-2:] for j in range(len(draft) + 1)]
        logits = np.zeros((WIDTH, self.rows), np.float32)
        logits[: len(last)] = [self.table[a % self.vocab, b % self.vocab] for a, b in last]
        samplers = [sampler] * len(last) + [None] * (WIDTH - len(last))
        ids = draw(self.rows)(jnp.asarray(logits), row_params(samplers, range(WIDTH)))
        return np.asarray(ids)[: len(last)].tolist()

    def probs(self, a: int, b: int) -> np.ndarray:
        wide = np.exp(self.table[a, b].astype(np.float64))
        return wide / wide.sum()


@functools.cache
def draw(vocab: int):
    """The step's own draw; a head of ones in the diagonal makes hidden states the logits."""
    return jax.jit(functools.partial(fast_choice, jnp.eye(vocab), vocab=vocab))


def decode(model: TableModel, prompt: list[int], params: SamplingParams, count: int) -> list[int]:
    """One token a step."""
    text, sampler = list(prompt), RowSampler(params, prompt, vocab=model.vocab)
    for _ in range(count):
        [token] = model.draws(text, sampler, [])
        text.append(token)
        sampler.note(token)
    return text[len(prompt) :]


def speculate(model, prompt, params, count, proposer, *, k=3, rule=verify) -> tuple[list[int], int]:
    """Return (answer, steps) with a draft in every step."""
    text, sampler, steps = list(prompt), RowSampler(params, prompt, vocab=model.vocab), 0
    if callable(proposer):  # one that draws as the request does
        proposer = proposer(sampler)
    while len(text) < len(prompt) + count:
        draft = proposer.propose(text, min(k, len(prompt) + count - len(text) - 1))
        for token in rule(draft, model.draws(text, sampler, draft)):
            text.append(token)
            sampler.note(token)
        steps += 1
    return text[len(prompt) :], steps


class OracleSometimes:
    """Guesses the true next token with a chance, else any: every length of accepted prefix comes up."""

    is_free = False

    def __init__(self, truth: list[int], vocab: int, chance: float):
        self.truth, self.vocab, self.chance, self.rng = truth, vocab, chance, np.random.default_rng(1)

    def propose(self, tokens, k):
        future = self.truth[len(tokens) : len(tokens) + k]
        return [t if self.rng.random() < self.chance else int(self.rng.integers(self.vocab)) for t in future]

    def read(self, tokens):
        pass

    def close(self):
        pass


class LittleSequence:
    def __init__(self, spare: int | None):
        self.tokens: list[int] = []
        self.spare, self.freed, self.longest = spare, False, 0

    @property
    def stored(self) -> int:
        return len(self.tokens)

    def can_rewind(self, length: int) -> bool:
        return self.spare is None or self.longest - length <= self.spare

    def rewind(self, length: int) -> None:
        assert length == 0 or self.can_rewind(length)
        del self.tokens[length:]
        self.longest = len(self.tokens)

    def free(self) -> None:
        self.freed = True


class LittleRunner:
    """A TableModel with a cache, as DraftRunner asks; checks what it is given."""

    def __init__(self, model: TableModel, *, context: int = 1000, chunk: int = 4, spare=None, room: int = 10**9):
        self.model, self.vocab, self.context, self.chunk = model, model.rows, context, chunk
        self.spare, self.room, self.sequences, self.calls, self.stored = spare, room, [], 0, 0

    def new_sequence(self) -> LittleSequence:
        if len(self.sequences) >= self.room:
            raise CapacityError("no ring is free")
        self.sequences.append(LittleSequence(self.spare))
        return self.sequences[-1]

    def next_token(self, sequence, ids, params) -> int:
        assert 0 < len(ids) <= self.chunk and all(0 <= i < self.vocab for i in ids)
        sequence.tokens += ids
        sequence.longest = max(sequence.longest, len(sequence.tokens))
        assert len(sequence.tokens) <= self.context
        self.calls, self.stored = self.calls + 1, self.stored + len(ids)
        a, b = [0, *sequence.tokens][-2:]
        logits = jnp.asarray(self.model.table[a % self.model.vocab, b % self.model.vocab])[None]
        return int(draw(self.model.rows)(logits, params)[0])


PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, top_k=12, top_p=1.0, seed=11),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, seed=12),
    SamplingParams(temperature=3.0, top_k=12, min_p=0.02, seed=13),
]
