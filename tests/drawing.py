"""A model of random logits that answers in a form at temperature 2, token by token, through the real masks."""

from functools import cache

import numpy as np

TEMPERATURE = 2.0


def ends(tokenizer):
    return [tokenizer.end_of_turn_id, tokenizer.eos_id]


def allowed(constraint, ids):
    return np.flatnonzero(np.unpackbits(constraint(ids).view(np.uint8), bitorder="little"))


def drawn(engine, tokenizer, form, seed, longest=400):
    """The text that comes out, None where it does not end."""
    rng, constraint, ids = np.random.default_rng(seed), engine.constrain(form), []
    for step in range(longest):
        allowed_ids = allowed(constraint, ids)
        assert len(allowed_ids) and allowed_ids[-1] < tokenizer.size
        logits = rng.normal(0, 3, tokenizer.size)[allowed_ids]
        # Of thousands of tokens few close a string: without a leaning towards them most answers would never end.
        logits += _closes(tokenizer)[allowed_ids] * (8 + step / 10)
        # The largest of logits / T + Gumbel noise is a draw from their softmax.
        token_id = int(allowed_ids[np.argmax(logits / TEMPERATURE + rng.gumbel(size=len(logits)))])
        if token_id in ends(tokenizer):
            assert constraint.is_complete(ids)
            return tokenizer.decode(ids)
        assert token_id not in tokenizer.control_ids
        ids.append(token_id)
    return None


@cache
def _closes(tokenizer):
    return np.array([tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]") for i in range(tokenizer.size)], float)
