"""What goes into the engine and what comes out: token ids, never text. Plain Python; no jax.

The scheduler (engine/scheduler.py) and the engine (engine/engine.py) speak these types; text, stop strings and chat
live above.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gemworks.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "deadline"]

# generate: draw tokens. score: log-probabilities of the prompt's own tokens. embed: the mean of its final states.
# choose: log-probabilities of some tokens as the one after the prompt, from the pass that computes the prompt.
RequestKind = Literal["generate", "score", "embed", "choose"]

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Order: penalties, bias, mask, temperature, top-k, top-p, min-p, draw.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 switch a filter off. `repetition_penalty` counts prompt and
    answer (as transformers), presence and frequency penalties count the answer only (as OpenAI). A seed fixes
    the draws whatever else runs; None draws a fresh one. `stop_ids` end the answer and are not part of it.
    `top_logprobs` N asks for the log-probability of each chosen token and the N likeliest ones, from the raw logits.
    """

    max_tokens: int | None = None  # None: until the context is full
    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self):
        def need(ok: bool, name: str, requirement: str) -> None:
            if not ok:
                raise RequestError(f"{name} must be {requirement}, got {getattr(self, name)}.")

        need(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        need(0.0 <= self.temperature < float("inf"), "temperature", "0 (greedy) or more")
        need(self.top_k >= 0, "top_k", "0 (off) or more")
        need(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        need(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        need(0.0 < self.repetition_penalty < float("inf"), "repetition_penalty", "above 0 (1 is off)")
        need(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2")
        need(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2")
        need(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")
        need(0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"between 0 and {MAX_TOP_LOGPROBS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftSpan:
    """Tokens [start, start + length) of a prompt that stand for an image: their embeddings come from an encoder.

    They attend both ways among themselves, so a chunk never ends inside. `key` says which image it is: equal keys,
    equal embeddings. `embed()` returns them, [length, D] fp32 as the first layer takes them, where they are not cached.
    sees_ahead False: a soft prompt, whose tokens see what is before them only, as words do.
    """

    start: int
    length: int
    key: Hashable
    embed: Callable[[], Any]
    sees_ahead: bool = True

    @property
    def end(self) -> int:
        """Position after the span."""
        return self.start + self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a caller wants computed.

    n: answers to one prompt; answer i draws with seed + i. key: whose request it is, for fairness (an account, a
    client). priority: higher is sooner among requests of one key; across keys each level doubles the share. deadline_s:
    by the engine's clock (time.monotonic); a request that is not done then ends with what it has. adapter: name of a
    loaded LoRA adapter. mask: called with the answer tokens so far before each draw, returns the allowed ids as bits
    (uint32 words, id i is bit i % 32 of word i // 32) or None for all; one that has `fork()` is forked for each answer,
    and may so keep what it knows of the tokens. score_from: first prompt position whose
    log-probability is wanted (kind "score"). choices: tokens whose log-probability as the next one is wanted (kind
    "choose"). use_cache False neither reads nor feeds the prefix cache. name: what
    messages and logs call it.
    """

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    kind: RequestKind = "generate"
    n: int = 1
    key: str = ""
    priority: int = 0
    deadline_s: float | None = None
    spans: tuple[SoftSpan, ...] = ()
    adapter: str | None = None
    mask: Callable[[list[int]], Any] | None = None
    score_from: int = 1
    choices: tuple[int, ...] = ()
    use_cache: bool = True
    name: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one token at its place, and the likeliest tokens there, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One answer token. `finish_reason` is set on the last event; a stop id ends the answer with token_id None.

    `index` says which of a request's n answers it belongs to.
    """

    token_id: int | None
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    index: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Seconds and token counts of one answer; rates are derived."""

    load_s: float = 0.0
    compile_s: float = 0.0  # compiling, or reading the compile cache; once a process; in none of the rates
    queue_s: float = 0.0  # before the first step; in none of the rates
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0  # computed, so without the cached ones
    decode_tokens: int = 0
    cached_tokens: int = 0

    @property
    def prefill_per_second(self) -> float:
        """Prompt tokens computed a second; 0 when nothing was computed."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_per_second(self) -> float:
        """Answer tokens a second after the first one; 0 for answers of one token."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0
