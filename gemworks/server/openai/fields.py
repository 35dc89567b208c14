"""Fields that several endpoints share: how tokens are drawn, what has no effect here, and what is refused by name."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from gemworks.engine.types import MAX_TOP_LOGPROBS
from gemworks.server.bodies import Body
from gemworks.server.errors import FieldError, UnsupportedError

MOST_ANSWERS = 128  # n, as OpenAI has it
_MOST_STOPS = 64
_FORMS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_TINIEST_TOP_P = 1e-6  # top_p 0 keeps the likeliest token alone, and so does this

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopString = Annotated[str, StringConstraints(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**31)]


class StreamOptions(Body):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against watchers of sizes; TLS in front of us may pad


class Sampling(Body):
    """How tokens are drawn, for chat and completions. None: as the model's makers recommend."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[StopString], Field(max_length=_MOST_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # no effect here: who asks is told by the API key
    # Beyond OpenAI's, as vLLM's clients send them.
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=_MOST_STOPS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def forms(self) -> dict[str, Any]:
        """What says which form the answer must have."""
        return {name: getattr(self, name) for name in _FORMS}

    @property
    def num_answers(self) -> int:
        """n."""
        return self.n or 1

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def sampling_of(body: Sampling, *, max_tokens: int | None) -> dict[str, Any]:
    """Return the keywords of LLM.stream for a body. Raises FieldError for what is not supported."""
    check_shared(body)
    return {
        "temperature": body.temperature,
        "top_p": least_top_p(body.top_p),
        "top_k": None if body.top_k is None else max(body.top_k, 0),  # -1 is off in vLLM
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": _bias(body.logit_bias),
        "seed": None if body.seed is None else body.seed % 2**63,
        "stop": stops_of(body.stop),
        "stop_ids": None if not body.stop_token_ids else tuple(body.stop_token_ids),
        "max_tokens": max_tokens,
        "n": body.num_answers,
    }


def check_shared(body: Sampling) -> None:
    """Raise UnsupportedError for what none of the endpoints can do."""
    wanted = {
        "ignore_eos": body.ignore_eos,
        "min_tokens": body.min_tokens,
        "use_beam_search": body.use_beam_search,
        "include_stop_str_in_output": body.include_stop_str_in_output,
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "prompt_logprobs": body.prompt_logprobs,
        "priority": body.priority,
    }
    for name, value in wanted.items():
        if value:
            raise UnsupportedError(name, got=value)
    if body.skip_special_tokens is False:
        raise UnsupportedError("skip_special_tokens", got=False)
    if body.length_penalty not in (None, 1.0):
        raise UnsupportedError("length_penalty", got=body.length_penalty)
    if body.best_of not in (None, body.num_answers):
        raise UnsupportedError("best_of", "Leave it out, or give the same as n.", got=body.best_of)
    if body.stream_options is not None:
        if not body.stream:
            raise FieldError("stream_options goes with stream: true.", param="stream_options", code="invalid_value")
        if body.stream_options.continuous_usage_stats:
            raise UnsupportedError("stream_options.continuous_usage_stats", got=True)
    if body.prompt_logprobs is not None:
        raise UnsupportedError("prompt_logprobs", "Use echo with logprobs on /v1/completions.")


def stops_of(stop: str | list[str] | None) -> list[str] | None:
    """Return stop strings as a list, None for none given. Raises FieldError for an empty one."""
    if stop is None:
        return None
    stops = [stop] if isinstance(stop, str) else stop
    if not all(stops):
        raise FieldError("stop must be texts of at least one character.", param="stop", code="invalid_value")
    return stops or None


def check_inert(fields: Mapping[str, Any], accepted: dict[str, tuple[Any, ...]]) -> None:
    """Raise UnsupportedError for a field with a value other than those that change nothing here."""
    for name, fine in accepted.items():
        value = fields.get(name)
        if value is not None and value not in fine:
            listed = ", ".join(repr(one) for one in fine)
            raise UnsupportedError(name, f"Leave it out, or give {listed}." if listed else "", got=value)


def check_top(top: int | None, name: str) -> int:
    """Return how many likely tokens are asked for. Raises FieldError beyond what the engine tells."""
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise FieldError(
            f"{name} must be between 0 and {MAX_TOP_LOGPROBS}, got {top}.", param=name, code="invalid_value"
        )
    return top or 0


def least_top_p(top_p: float | None) -> float | None:
    """Return top_p as the sampler takes it: 0 keeps the likeliest token alone."""
    return None if top_p is None else max(top_p, _TINIEST_TOP_P)


def to_base64(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def _bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    told: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise FieldError(
                f"logit_bias must map token ids to numbers, got the key {key!r:.60}.",
                param="logit_bias",
                code="invalid_value",
            )
        told[int(key)] = value
    return told
