"""Pieces of OpenAI's answers: ids, usage, log-probabilities, and the bytes of a stream's events.

An event a token is written by joining strings: the parts that do not change are made once an answer, and of the rest
only the text is escaped.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gemworks
from gemworks.errors import CapacityError
from gemworks.server.errors import openai_error

if TYPE_CHECKING:
    from gemworks.engine.types import TokenLogprob
    from gemworks.llm.answers import Completion
    from gemworks.tokenizer.tokenizer import Tokenizer

FINGERPRINT = f"gemworks-{gemworks.__version__}"
DONE = b"data: [DONE]\n\n"

dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
escape = json.encoder.encode_basestring  # a text as a JSON string, by the C code of json


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Return the time as OpenAI tells it: whole seconds since 1970."""
    return int(time.time())


def event(data: str, name: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


def error_event(error: Exception, *, request_id: str = "") -> bytes:
    """Return an error as a stream tells it, which ends there."""
    return event(dumps(openai_error(error, request_id=request_id).body))


def usage_of(prompt_tokens: int, answers: "Sequence[Completion]") -> dict[str, Any]:
    """Return the `usage` of n answers to one prompt."""
    drawn = sum(answer.completion_tokens for answer in answers)
    # The second of n answers finds the prompt of the first: what was there before is what the first one found.
    cached = min((answer.timings.cached_tokens for answer in answers), default=0)
    return usage(prompt_tokens, drawn, cached)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return a `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def finish(reason: str | None) -> str | None:
    """Return a finish reason as OpenAI names it. Raises CapacityError for an answer that was cut off by the server."""
    if reason == "cancelled":
        raise CapacityError("this answer was cut off: the server is stopping, or its model was unloaded.")
    return "length" if reason == "deadline" else reason


def token_told(tokenizer: "Tokenizer", token_id: int, logprob: float) -> dict[str, Any]:
    """Return a token with its bytes: half a character is told by its bytes, its text is U+FFFD."""
    data = token_data(tokenizer, token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}


def token_data(tokenizer: "Tokenizer", token_id: int) -> bytes:
    """Return the bytes of a token; of a control token, its name."""
    if token_id in tokenizer.control_ids:
        return tokenizer.piece(token_id).encode()
    return tokenizer.token_bytes(token_id)


def logprobs_told(tokenizer: "Tokenizer", scores: "Sequence[TokenLogprob]") -> list[dict[str, Any]]:
    """Return `logprobs.content` of the chat API (and `logprobs` of a response's text)."""
    return [
        token_told(tokenizer, score.token_id, score.logprob)
        | {"top_logprobs": [token_told(tokenizer, token_id, value) for token_id, value in score.top]}
        for score in scores
    ]


def finite(logprob: float) -> float:
    """Return a log-probability as JSON can hold it."""
    # JSON has no -inf; OpenAI tells -9999.0 for what cannot be.
    return max(logprob, -9999.0)
