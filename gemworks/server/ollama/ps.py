"""GET /api/ps: the models in memory."""

import math
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.errors import GemworksError
from gemworks.server import asking
from gemworks.server.ollama.answer import dumped
from gemworks.server.ollama.names import describe, rfc3339, tagged
from gemworks.server.streams import JSONBytes

if TYPE_CHECKING:
    from gemworks.server.host import Loaded

router = APIRouter()


@router.get("/api/ps", response_model=None)
async def ps(request: Request) -> Response:
    """Every model in memory, the one that stays longest first; `users` counts the answers it makes now."""
    held = sorted(request.app.state.host.loaded(), key=_until, reverse=True)
    return JSONBytes(dumped({"models": await asking.in_thread(lambda: [_row(one) for one in held])}))


def _row(loaded: "Loaded") -> dict[str, Any]:
    try:
        row = describe(loaded.name).row()
    except GemworksError:  # its files are gone, and it is still in memory
        row = {"name": tagged(loaded.name), "model": tagged(loaded.name), "digest": "", "details": {}}
    return row | {
        "size": loaded.size_bytes,
        "expires_at": rfc3339(_until(loaded)),
        "size_vram": 0,  # the weights' home is not told by the engine; on a CPU this is the truth
        "context_length": loaded.llm.context,
        "users": loaded.users,
    }


def _until(loaded: "Loaded") -> float:
    """When a model goes if nobody uses it again; what is in use goes no sooner than its time after now."""
    if math.isinf(loaded.keep_alive_s):
        return math.inf
    return loaded.expires_at or time.time() + loaded.keep_alive_s
