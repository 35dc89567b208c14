"""DELETE /api/delete: remove a model from this machine."""

from fastapi import APIRouter, Request, Response

from gemworks.errors import ConfigError, NotFoundError, StorageError
from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.ollama import uploads
from gemworks.server.ollama.checks import check_may_manage
from gemworks.server.ollama.fields import NamedBody
from gemworks.server.openai.document import body_of
from gemworks.weights import hub, store

router = APIRouter()


@router.delete("/api/delete", openapi_extra=body_of(NamedBody))
async def delete(request: Request) -> Response:
    """Remove a pulled or created model. One that is loaded is let go first, when its last answer is done."""
    body = await read_body(request, NamedBody)
    check_may_manage(request)
    name = request.app.state.host.resolve(body.named)
    await request.app.state.host.unload(name)
    await asking.in_thread(lambda: remove(name))
    return Response(media_type="application/json")


def remove(name: str) -> None:
    """Remove the model `name`. Raises ConfigError where others need it, NotFoundError where it is no stored model."""
    if name == "tiny":
        raise ConfigError("tiny is part of Gemworks and cannot be removed.")
    if store.created_exists(name):
        store.remove_created(name)
        uploads.prune()
        return
    repository = hub.repository_of(name)
    if repository is None or not store.pulled_path(repository.id).is_dir():
        raise NotFoundError(f"model {name[:200]!r} not found: it is not one that was pulled or created here.")
    if dependents := hub.dependents(repository.id):
        needs = "is" if len(dependents) == 1 else "are"
        raise ConfigError(
            f"{name} cannot be removed: {', '.join(dependents)} {needs} made from it.\nRemove that first."
        )
    file = hub.pulled(repository)
    others = [one for one in store.pulled_path(repository.id).glob("*.gguf") if one != file]
    if repository.format and others and file is not None:
        try:
            file.unlink()
        except OSError as error:
            raise StorageError(f"{file} cannot be removed: {error.strerror}.") from error
    else:
        store.remove_pulled(repository.id)
