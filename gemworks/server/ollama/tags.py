"""GET /api/tags: the models of this machine."""

from typing import Any

from fastapi import APIRouter, Request, Response

from gemworks.server import asking
from gemworks.server.ollama.answer import dumped
from gemworks.server.ollama.names import capabilities, listed, rfc3339
from gemworks.server.streams import JSONBytes

router = APIRouter()


@router.get("/api/tags", response_model=None)
@router.head("/api/tags", include_in_schema=False)
async def tags(request: Request) -> Response:
    """Every model that a request may name."""
    state = request.app.state
    any_local = state.settings.models.any_local

    def rows() -> list[dict[str, Any]]:
        found = listed(state.host, any_local=any_local)
        return [
            model.row() | {"modified_at": rfc3339(model.modified_s), "capabilities": capabilities(model.facts)}
            for model in found
        ]

    return JSONBytes(dumped({"models": await asking.in_thread(rows)}))
