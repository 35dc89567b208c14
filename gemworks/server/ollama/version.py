"""GET /api/version; POST /api/push, which is not done here."""

from fastapi import APIRouter, Request, Response

from gemworks.server.errors import UnsupportedError
from gemworks.server.ollama.answer import dumped
from gemworks.server.streams import JSONBytes

router = APIRouter()

# The release of Ollama whose API this is. Clients ask for "at least 0.6.4" before they use a server (the editors that
# read `capabilities` do), so our own version here would turn them away; it is told beside.
API_VERSION = "0.12.11"


@router.get("/api/version", response_model=None)
@router.head("/api/version", include_in_schema=False)
async def version(request: Request) -> Response:
    """The release of Ollama whose API is spoken, and ours."""
    return JSONBytes(dumped({"version": API_VERSION, "gemworks": request.app.version}))


@router.post("/api/push", include_in_schema=False)
async def push(request: Request) -> Response:
    """Refused: models are not sent anywhere."""
    raise UnsupportedError("/api/push", "Upload the model's directory with your hub's own client.")
