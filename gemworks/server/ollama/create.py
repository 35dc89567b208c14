"""POST /api/create: a model of one's own, from a model of this machine or from files that were sent."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from gemworks import env
from gemworks.errors import CheckpointError, GemworksError
from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.ollama import facts, uploads
from gemworks.server.ollama.answer import dumped, failed_line
from gemworks.server.ollama.checks import check_may_manage
from gemworks.server.ollama.fields import CreateBody
from gemworks.server.ollama.options import read_options
from gemworks.server.openai.document import body_of
from gemworks.server.streams import NDJSON, JSONBytes, finished, open_stream
from gemworks.weights import creating
from gemworks.weights.modelfile import Modelfile

router = APIRouter()


@router.post("/api/create", openapi_extra=body_of(CreateBody))
async def create(request: Request) -> Response:
    """Create a model: `from` a model or `files`, with parameters, system, template, messages and license."""
    body = await read_body(request, CreateBody)
    check_may_manage(request)
    name = body.named.removesuffix(":latest")
    if body.quantize:
        raise UnsupportedError("quantize", "Quantize first, with gemworks quantize, and create from what it writes.")
    if body.adapters:
        raise UnsupportedError("adapters", "Merge the adapter into its model first.")
    if bool(body.from_) == bool(body.files):
        got = "both" if body.files else "neither"
        raise FieldError(f"a model is created from one of `from` and `files`, got {got}.", param="from")
    if body.stream is not False:
        lines = _lines(request, name, body)
        return await open_stream(request, lines, media_type=NDJSON, failed=failed_line(request))

    async def whole() -> Response:
        await _make(request, name, body)
        return JSONBytes(dumped({"status": "success"}))

    return await finished(request, whole())


async def _lines(request: Request, name: str, body: CreateBody) -> AsyncGenerator[bytes, None]:
    await _make(request, name, body)
    for status in ("reading model metadata", "writing manifest", "success"):
        yield dumped({"status": status}) + b"\n"


async def _make(request: Request, name: str, body: CreateBody) -> None:
    host = request.app.state.host
    base = host.resolve(body.from_) if body.from_ else ""
    await asking.in_thread(lambda: _save(name, base, body))
    await host.unload(name)  # an earlier model of that name


def _save(name: str, base: str, body: CreateBody) -> None:
    creating.check_name(name)
    parameters = _parameters(body.parameters)
    try:
        modelfile = Modelfile(
            base=str(_checked(uploads.adopt(body.files))) if body.files else base,
            parameters=parameters,
            system=body.system or None,
            template=body.template or None,
            messages=tuple((message.role.lower(), message.content or "") for message in body.messages or ()),
            licenses=tuple([body.license] if isinstance(body.license, str) else body.license or ()),
        )
        creating.save(name, modelfile, where=name, folder=env.home() / "created")
    finally:
        uploads.prune()


def _parameters(given: dict[str, Any] | None) -> dict[str, Any]:
    """Options by our names, as a Modelfile holds them. Raises FieldError."""
    asked = read_options(given)
    told = dict(asked.sampling)
    if "stop" in told:
        told["stop"] = tuple(told["stop"])
    if asked.has_max_tokens:
        told["max_tokens"] = asked.max_tokens
    if asked.context is not None:
        told["context"] = asked.context
    return told


def _checked(path: Path) -> Path:
    """The model that was sent, if it is one that runs here. Raises FieldError that says what is wrong with it."""
    try:
        facts.read(path)
    except (CheckpointError, GemworksError) as error:
        raise FieldError(f"files: {error}", param="files", code="invalid_value") from error
    return path
