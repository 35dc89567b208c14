"""GET /v1/models and /v1/models/{id}: what this server answers with."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server.openai import shapes
from gemworks.server.streams import JSONBytes

if TYPE_CHECKING:
    from gemworks.server.host import ModelHost

router = APIRouter()

_STARTED = shapes.now()  # `created` of a model that is not loaded: the server knows of it since it started


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    """The models of the command line, and those that are loaded beside them."""
    host = request.app.state.host
    names = dict.fromkeys([*host.served(), *(loaded.name for loaded in host.loaded())])
    return JSONBytes(shapes.dumps({"object": "list", "data": [_model(host, name) for name in names]}))


@router.get("/v1/models/{name:path}", response_model=None)
async def get_model(request: Request, name: str) -> Response:
    """One model; any that this server would answer with."""
    host = request.app.state.host
    return JSONBytes(shapes.dumps(_model(host, host.resolve(name))))


def _model(host: "ModelHost", name: str) -> dict[str, Any]:
    """A model; of one that is loaded also how long its context is and what it can, by vLLM's and Ollama's names."""
    told: dict[str, Any] = {"id": name, "object": "model", "created": _STARTED, "owned_by": "gemworks"}
    loaded = next((one for one in host.loaded() if one.name == name), None)
    if loaded is not None:
        can = ["completion", "embedding", *(["vision"] if loaded.llm.eyes is not None else [])]
        told |= {"created": int(loaded.loaded_at), "max_model_len": loaded.llm.context, "capabilities": can}
    return told
