"""Ollama's `options` and `keep_alive` as what our models take.

    honoured     num_ctx num_predict temperature top_k top_p min_p seed stop repeat_penalty presence_penalty
                 frequency_penalty
    as one value mirostat tfs_z typical_p penalize_newline repeat_last_n: taken where they change no answer
    ignored      num_gpu num_thread num_batch ...: the machine's, they change no word

Everything else is refused by name, as is a value that would change an answer and cannot be honoured.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from gemworks.engine.types import SamplingParams
from gemworks.errors import RequestError
from gemworks.server.errors import FieldError, UnsupportedError

# Ollama's name -> ours.
_WHOLE = {"num_predict": "max_tokens", "top_k": "top_k", "seed": "seed", "num_ctx": "context"}
_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_NAMES = {ours: ollama for ollama, ours in (_WHOLE | _NUMBERS).items()}

# Of the machine or of the moment the model is loaded: no word of an answer depends on them. num_keep says what stays
# when a full context is shifted, which is not done here.
_HINTS = frozenset(
    {"num_gpu", "num_thread", "num_batch", "num_keep", "num_gqa", "main_gpu", "low_vram", "f16_kv", "numa"}
    | {"use_mmap", "use_mlock", "vocab_only", "logits_all", "embedding_only", "draft_num_predict"}
)

# Samplers that are not ours: the values at which they do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1, 0),
    "typical_p": (1,),
    "penalize_newline": (True,),
}
_ONLY_WITH_MIROSTAT = ("mirostat_eta", "mirostat_tau")
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

_KNOWN = (*_WHOLE, *_NUMBERS, "stop", "repeat_last_n", *_NEUTRAL, *_ONLY_WITH_MIROSTAT, *_HINTS)

# llama.cpp keeps at least one token whatever top_p is, so 0 means the likeliest one; ours must be above 0.
_SMALLEST_TOP_P = 1e-6

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What options ask for.

    sampling: the keywords of LLM.stream without the length. max_tokens: None is "until the context is full". context:
    tokens of prompt and answer together, None as the model was loaded.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    has_max_tokens: bool = False  # said, be it without limit: a created model's own does not count then
    context: int | None = None


def read_options(options: Mapping[str, Any] | None) -> Asked:
    """Return what `options` ask for. Raises FieldError that names the option."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    values: dict[str, Any] = {}
    for name, value in given.items():
        where = f"options.{name}"
        if name in _WHOLE:
            values[_WHOLE[name]] = _whole(value, where)
        elif name in _NUMBERS:
            values[_NUMBERS[name]] = _number(value, where)
        elif name == "stop":
            values["stop"] = _stops(value, where)
        elif name in _NEUTRAL:
            _check_neutral(name, value)
        elif name not in _KNOWN:
            raise _unknown(name)
    _check_window(given, values)
    return _asked(values)


def read_keep_alive(value: Any) -> float | None:
    """Return seconds a model stays loaded after its last use, -1 for ever, None for the server's own.

    Takes seconds, or a duration as Go writes it: "5m", "1h30m", "-1". Raises FieldError.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return -1.0 if value < 0 or math.isinf(value) else float(value)
    seconds = _duration(value) if isinstance(value, str) else None
    if seconds is None:
        raise FieldError(
            f'keep_alive must be seconds or a duration such as "5m", "1h30m" or "-1", got {value!r:.60}.',
            param="keep_alive",
            code="invalid_value",
        )
    return -1.0 if seconds < 0 else seconds


def _duration(text: str) -> float | None:
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if re.fullmatch(r"\d+(\.\d*)?", rest):
        return sign * float(rest)
    parts = _DURATION.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        return None
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _asked(values: dict[str, Any]) -> Asked:
    """The values in our terms, their ranges checked."""
    has_max_tokens = "max_tokens" in values
    max_tokens, context = values.pop("max_tokens", None), values.pop("context", None)
    if max_tokens is not None and max_tokens < 0:  # -1: without limit; -2: until the context is full
        max_tokens = None
    if max_tokens == 0:
        raise _bad("options.num_predict", "at least 1, or -1 for no limit", 0)
    if context is not None and context < 2:
        raise _bad("options.num_ctx", "at least 2 tokens", context)
    if values.get("seed", 0) < 0:
        values["seed"] = None
    values["top_k"] = max(values.get("top_k", 0), 0) if "top_k" in values else None
    if values.get("top_p") == 0:
        values["top_p"] = _SMALLEST_TOP_P
    sampling = {name: value for name, value in values.items() if value is not None}
    for name, value in sampling.items():
        if name != "stop":
            _check_range(name, value)
    return Asked(sampling=sampling, max_tokens=max_tokens, has_max_tokens=has_max_tokens, context=context)


def _check_range(name: str, value: Any) -> None:
    try:
        SamplingParams(**{name: value})
    except RequestError as error:
        where = f"options.{_NAMES[name]}"
        raise FieldError(str(error).replace(name, where, 1), param=where, code="invalid_value") from None


def _check_neutral(name: str, value: Any) -> None:
    if not any(value is one or (value == one and not isinstance(value, bool)) for one in _NEUTRAL[name]):
        neutral = repr(_NEUTRAL[name][0]).lower()
        raise UnsupportedError(f"options.{name}", f"Leave it out, or send {neutral}, which switches it off.", got=value)


def _check_window(given: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Honour repeat_last_n where that is possible: our penalties look at everything."""
    if "repeat_last_n" not in given:
        return
    last = _whole(given["repeat_last_n"], "options.repeat_last_n")
    if last == 0:
        values |= _PENALTIES
    elif last > 0 and any(values.get(name, neutral) != neutral for name, neutral in _PENALTIES.items()):
        raise UnsupportedError(
            "options.repeat_last_n",
            "Penalties look at the whole text here: send -1, or leave it out.",
            got=last,
        )


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value not in _INT64:
        raise _bad(where, "a whole number", value)
    return int(value)


class _Int64:
    """Whole numbers of 64 bits, also written as 5.0, which is how some clients send all numbers."""

    def __contains__(self, value: float) -> bool:
        return -(2**63) <= value < 2**63 and value == int(value)


_INT64 = _Int64()


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(where, "a number", value)
    return float(value)


def _stops(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _bad(where, "an array of texts", value)
    return [text for text in texts if text]  # an empty one would never be found


def _bad(where: str, wanted: str, value: Any) -> FieldError:
    return FieldError(f"{where} must be {wanted}, got {value!r:.60}.", param=where, code="invalid_value")


def _unknown(name: str) -> FieldError:
    near = get_close_matches(name, _KNOWN, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    known = ", ".join((*_WHOLE, *_NUMBERS, "stop"))
    return FieldError(
        f'there is no option "{name[:60]}".{hint}\nKnown: {known}.',
        param=f"options.{name[:60]}",
        code="unknown_parameter",
    )
