"""What /api/chat and /api/generate refuse by name, because ignoring it would answer another question."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request

from gemworks.errors import AccessError
from gemworks.server.errors import FieldError, TooLargeError, UnsupportedError
from gemworks.server.ollama.fields import ChatBody, GenerateBody
from gemworks.server.ollama.options import Asked

if TYPE_CHECKING:
    from gemworks.server.calls import Call


def check_asked(body: ChatBody | GenerateBody) -> None:
    """Raise UnsupportedError for thinking and shifting."""
    if body.think:
        raise UnsupportedError("think", f"{body.named} does not support thinking. Send false, or leave it out.")
    if body.shift:
        raise UnsupportedError("shift", "A full context ends the answer here (done_reason length). Leave it out.")


def form_of(format: Any, schema_bytes: int) -> dict[str, Any]:
    """Return the keywords of LLM.prepare for a `format`: "json", or a JSON schema of at most `schema_bytes`.

    What a schema says is checked when the call is prepared. Raises FieldError.
    """
    if format is None or format == "":
        return {}
    if format == "json":
        from gemworks.text import grammar

        return {"grammar": grammar.json_object()}
    if not isinstance(format, dict):
        raise FieldError(f'format must be "json" or a JSON schema, got {format!r:.60}.', param="format")
    if (length := len(json.dumps(format))) > schema_bytes:
        raise TooLargeError(f"format has {length:,} characters; this server takes {schema_bytes:,}.", param="format")
    return {"schema": format}


def keywords(body: ChatBody | GenerateBody, options: Asked, form: Mapping[str, Any], call: "Call") -> dict[str, Any]:
    """Return the keywords of LLM.prepare; `form` is of `form_of`. The length of the answer is decided after it."""
    scores = {"logprobs": True, "top_logprobs": body.top_logprobs or 0} if body.logprobs else {}
    return {**options.sampling, **scores, **form, "max_tokens": 1, "key": call.key, "priority": call.priority}


def check_may_manage(request: Request) -> None:
    """Raise AccessError where the caller may not pull, create, copy or delete models.

    Everybody may who can reach a server without keys, as in Ollama; with keys, those added with --admin.
    """
    state = request.app.state
    if not state.settings.models.any_local:
        raise AccessError(
            "this server serves the models it was started with, and none are added or removed (models.any_local).",
            forbidden=True,
        )
    if state.services.keys is not None and not request.state.caller.is_admin:
        raise AccessError(
            "this API key may ask models, and not add or remove them. Make one that may: gemworks key add NAME --admin",
            forbidden=True,
        )
