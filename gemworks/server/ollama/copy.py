"""POST /api/copy: a model under another name. Nothing but its Modelfile is copied."""

from fastapi import APIRouter, Request, Response

from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.ollama.answer import dumped
from gemworks.server.ollama.checks import check_may_manage
from gemworks.server.ollama.fields import CopyBody
from gemworks.server.openai.document import body_of
from gemworks.server.streams import JSONBytes
from gemworks.weights import creating, store
from gemworks.weights.modelfile import Modelfile

router = APIRouter()


@router.post("/api/copy", openapi_extra=body_of(CopyBody))
async def copy(request: Request) -> Response:
    """Call a model `destination` too, with its parameters, system message and messages."""
    body = await read_body(request, CopyBody)
    check_may_manage(request)
    name = request.app.state.host.resolve(body.source)

    def save() -> None:
        made = store.read_created(name) or Modelfile(base=name)
        creating.save(body.destination.removesuffix(":latest"), made, where="destination")

    await asking.in_thread(save)
    await request.app.state.host.unload(body.destination)  # an earlier model of that name
    return JSONBytes(dumped({}))
