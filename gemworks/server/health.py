"""/health/live, /health/ready and /metrics.

live: the event loop turns. ready: new calls are taken (loaded and warm, not draining); the details say what works not
as it should though calls are answered, such as a usage file on a full disk.
"""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gemworks.server.metrics import CONTENT_TYPE
from gemworks.server.services import Services

router = APIRouter(include_in_schema=False)


@router.get("/health/live")
async def live() -> JSONResponse:
    """Answer as long as the process can answer anything."""
    return JSONResponse({"status": "live"})


@router.get("/health")
@router.get("/health/ready")
async def ready(request: Request) -> JSONResponse:
    """Answer 200 while new calls are taken, else 503."""
    services: Services = request.app.state.services
    status = "ready" if services.accepts else "draining" if services.calls.draining else "loading"
    told = {
        "status": status,
        "waiting": services.calls.waiting,
        "running": services.calls.running,
        "problems": services.problems(),
    }
    headers = {} if services.accepts else {"retry-after": "1"}
    return JSONResponse(told, status_code=200 if services.accepts else 503, headers=headers)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Answer with everything Prometheus collects."""
    services: Services = request.app.state.services
    if not services.settings.metrics.enabled:
        return JSONResponse({"detail": "metrics are switched off (metrics.enabled)"}, status_code=404)
    return Response(services.metrics.text(), media_type=CONTENT_TYPE)
