"""On-policy distillation (GKD, Agarwal et al. 2023, arXiv 2306.13649): the teacher judges the student's own texts.

    y ~ student(. | prompt)                          nothing is differentiated through the draws
    loss = mean over the tokens of y of D(teacher(. | prompt, y<t), student(. | prompt, y<t))

A student that only ever sees the data's texts does not learn what to do after a mistake of its own. D is over the whole
vocabulary, p the teacher's distribution and q the student's:

    forward    sum p (ln p - ln q)                   covers all that the teacher does
    reverse    sum q (ln q - ln p)                   leaves out what the teacher does not do
    jsd        beta KL(p, m) + (1 - beta) KL(q, m)   m = beta p + (1 - beta) q; bounded

jsd / beta becomes forward as beta goes to 0, and jsd / (1 - beta) reverse as beta goes to 1. A share `on_policy` (the
paper's lambda) of the micro-batches is sampled; the others are the data's rows, all of whose targets count.

Texts are drawn inside the compiled step from the arrays that are trained, as they are at that step, with the step's
key: a run that is resumed draws the same. Prompts are read a token at a time, like answers: T steps of a token for each
row, fewer where all answers end.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from gemworks.errors import ConfigError
from gemworks.model.config import TEXT_VOCAB_SIZE
from gemworks.model.gemma3 import Batch, Gemma3
from gemworks.ops import select
from gemworks.ops.kv import LayerKV, PageKV, PagePlan, RingPlan, new_page_kv, new_ring_kv
from gemworks.ops.train.product import linear
from gemworks.train.forward import Rows, head_rows, hidden
from gemworks.train.loss import Call, Terms, num_targets, weighted_sum

# B rows, T tokens a row, c tokens of a part, D model width, V vocabulary rows, M pages of a row

Divergence = Literal["forward", "reverse", "jsd"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)

LOGITS_AT_ONCE = 2**25  # [B, c, V] of one model: 128 MiB; half a dozen such arrays exist at once

_PAGE = 64  # tokens


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Learn from what the teacher `call.frozen` says of the student's answers.

    A row's prompt is its leading tokens whose targets do not count, but at least `prompt` tokens, and of its first text
    only. An answer goes on to the end of the row or to one of the ids `end`, which counts.
    """

    divergence: Divergence = "jsd"
    beta: float = 0.5  # of jsd
    on_policy: float = 1.0
    temperature: float = 1.0  # of the student's draws
    prompt: int = 32
    end: tuple[int, ...] = (1, 106)  # <eos>, <end_of_turn>
    logits_at_once: int = LOGITS_AT_ONCE

    def __post_init__(self):
        if self.divergence not in DIVERGENCES:
            raise ConfigError(
                f"divergence of an on-policy distillation must be one of {', '.join(DIVERGENCES)}, got "
                f'"{self.divergence}".'
            )
        if not 0 < self.beta < 1:
            raise ConfigError(
                f"beta must be between 0 and 1, both excluded, got {self.beta}. Its limits are divergence=forward and "
                "reverse."
            )
        if not 0 <= self.on_policy <= 1 or self.temperature <= 0 or self.prompt < 1:
            raise ConfigError(
                "an on-policy distillation needs 0 <= on_policy <= 1, temperature > 0 and prompt >= 1; got "
                f"{self.on_policy}, {self.temperature} and {self.prompt}."
            )

    def __call__(self, model: Gemma3, rows: Rows, call: Call) -> Terms:
        """Return the sums over these rows, or over rows with the student's answers in their place."""
        choice, draws = jax.random.split(call.key)
        is_own = jax.random.uniform(choice) < self.on_policy
        rows = Rows(*(jnp.asarray(array) for array in rows))
        if self.on_policy:
            student = jax.lax.stop_gradient(model)
            rows = jax.lax.cond(is_own, lambda: answered(self, student, rows, draws), lambda: rows)
        teacher = jax.lax.stop_gradient(call.frozen)
        h_BTD = hidden(model, rows, call.layout, remat=call.remat)
        taught_BTD = hidden(teacher, rows, call.layout, remat=False)
        found = self._divergences(h_BTD, head_rows(model), taught_BTD, head_rows(teacher), rows.targets_BT)
        total, nll, teacher_nll = (weighted_sum(x_BT, rows) for x_BT in found)
        weight = num_targets(rows)
        more = {"divergence": total, "nll": nll, "teacher_nll": teacher_nll, "own": weight * is_own}
        return Terms(total, weight, more)

    def _divergences(self, h_BTD, head_VD, taught_BTD, taught_VE, targets_BT) -> tuple[jax.Array, ...]:
        """(divergence_BT, -ln q_BT and -ln p_BT of the targets), some tokens of every row at a time."""
        B, T = targets_BT.shape
        most = max(1, self.logits_at_once // (B * head_VD.shape[0]))
        c = next(c for c in range(min(T, most), 0, -1) if T % c == 0)

        @jax.checkpoint
        def part(one):
            h_BcD, taught_BcE, targets_Bc = one
            ln_q = jax.nn.log_softmax(linear(h_BcD, head_VD), axis=-1)
            ln_p = jax.nn.log_softmax(linear(taught_BcE, taught_VE), axis=-1)
            nlls = (-jnp.take_along_axis(x, targets_Bc[..., None], axis=-1)[..., 0] for x in (ln_q, ln_p))
            return divergence(self.divergence, ln_p, ln_q, self.beta), *nlls

        parts = [jnp.moveaxis(x.reshape(B, T // c, c, *x.shape[2:]), 1, 0) for x in (h_BTD, taught_BTD, targets_BT)]
        return tuple(jnp.moveaxis(x, 0, 1).reshape(B, T) for x in jax.lax.map(part, tuple(parts)))


def divergence(kind: Divergence, ln_p: jax.Array, ln_q: jax.Array, beta: float = 0.5) -> jax.Array:
    """Return D [...] of log-probabilities [..., V], in nats."""
    if kind == "jsd":
        ln_m = jnp.logaddexp(ln_p + jnp.log(beta), ln_q + jnp.log1p(-beta))
        return beta * _kl(ln_p, ln_m) + (1 - beta) * _kl(ln_q, ln_m)
    return _kl(ln_p, ln_q) if kind == "forward" else _kl(ln_q, ln_p)


def answered(settings: OnPolicy, model: Gemma3, rows: Rows, key: jax.Array) -> Rows:
    """Return the rows' prompts with answers that the model draws; only the answers' targets count."""
    given_BT, mask_BT = jnp.asarray(rows.ids_BT), jnp.asarray(rows.loss_mask_BT) > 0
    B, T = given_BT.shape
    prompt_B = prompt_lengths(settings, rows)
    ends = jnp.asarray(settings.end, jnp.int32)
    V = model.config.vocab_size

    def step(carry):
        t, text, is_over_B, kv = carry
        h_BD, kv = _next(model, text[:, t], t, kv)
        logits_BV = model.logits(h_BD) / settings.temperature
        if V > TEXT_VOCAB_SIZE:  # rows of the table that no tokenizer makes
            logits_BV = jnp.where(jnp.arange(V) < TEXT_VOCAB_SIZE, logits_BV, -jnp.inf)
        drawn_B = jax.random.categorical(jax.random.fold_in(key, t), logits_BV).astype(jnp.int32)
        is_answer_B = t + 1 >= prompt_B
        next_B = jnp.where(is_answer_B & ~is_over_B, drawn_B, jnp.where(is_answer_B, 0, text[:, t + 1]))
        is_over_B |= is_answer_B & jnp.isin(next_B, ends)
        return t + 1, text.at[:, t + 1].set(next_B), is_over_B, kv

    # A row of T targets is T + 1 tokens, the last of which is a target only.
    text = jnp.concatenate([given_BT, jnp.zeros((B, 1), jnp.int32)], axis=1)
    start = jnp.zeros((), jnp.int32), text, ~mask_BT.any(axis=1), _empty_kv(model, B, T)
    with select.force("*", "xla"):
        t, text, _, _ = jax.lax.while_loop(lambda carry: (carry[0] < T) & ~carry[2].all(), step, start)
    return _rows_of(text, prompt_B, ends, t, mask_BT.any(axis=1))


def prompt_lengths(settings: OnPolicy, rows: Rows) -> jax.Array:
    """Return how many tokens of each row are given: int32, 1 ... T."""
    mask_BT, segment_BT = jnp.asarray(rows.loss_mask_BT) > 0, jnp.asarray(rows.segment_BT)
    leading_B = jnp.cumprod(~mask_BT, axis=1).sum(axis=1)
    first_B = jnp.cumprod(segment_BT == segment_BT[:, :1], axis=1).sum(axis=1)
    return jnp.minimum(jnp.maximum(settings.prompt, leading_B + 1), first_B).astype(jnp.int32)


def _rows_of(text: jax.Array, prompt_B: jax.Array, ends: jax.Array, end: jax.Array, has_targets_B: jax.Array) -> Rows:
    """Rows of texts of T + 1 tokens: a target counts from the answer's first token to its end, that included."""
    B, T = text.shape[0], text.shape[1] - 1
    index = jnp.arange(T)
    is_answer = (index + 1 >= prompt_B[:, None]) & (index < end) & has_targets_B[:, None]
    is_end = is_answer & jnp.isin(text[:, 1:], ends)
    was_over = jnp.cumsum(is_end, axis=1) - is_end > 0
    mask = (is_answer & ~was_over).astype(jnp.float32)
    one = jnp.ones((B, T), jnp.int32)
    return Rows(text[:, :-1], text[:, 1:], mask, one, jnp.broadcast_to(index.astype(jnp.int32), (B, T)))


def _next(model: Gemma3, ids_B: jax.Array, t: jax.Array, kv: tuple[LayerKV, ...]):
    """(h_BD of token t of every row, kv with it stored)."""
    B, config = ids_B.shape[0], model.config
    start, one, rows = jnp.full(B, t, jnp.int32), jnp.ones(B, jnp.int32), jnp.arange(B, dtype=jnp.int32)
    window = config.local_spec.window if config.local_spec else None
    pages = next((one.k_PBKH.shape[0] // B for one in kv if isinstance(one, PageKV)), 1)
    table = jnp.arange(B * pages, dtype=jnp.int32).reshape(B, pages)
    local = RingPlan(start, one, rows, window or 1)
    return model(Batch(ids_B, start, local, PagePlan(start, one, table)), kv)


def _empty_kv(model: Gemma3, rows: int, tokens: int) -> tuple[LayerKV, ...]:
    """A ring a row for local layers, the row's own pages for global ones. There is no padding, so no page is spare."""
    config, dtype = model.config, model.embed.weight.dtype
    heads = config.num_kv_heads, config.head_dim, dtype
    return tuple(
        new_ring_kv(rows, min(spec.window, tokens), *heads)
        if spec.window is not None
        else new_page_kv(rows * -(-tokens // _PAGE), _PAGE, *heads)
        for spec in config.layers
    )


def _kl(ln_p: jax.Array, ln_q: jax.Array) -> jax.Array:
    return (jnp.exp(ln_p) * (ln_p - ln_q)).sum(axis=-1)
