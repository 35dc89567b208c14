"""POST /api/pull: fetch a model from the hub, telling how far it is.

    {"status": "pulling manifest"}
    {"status": "pulling model.safetensors", "digest": "model.safetensors", "total": 815310040, "completed": 20971520}
    {"status": "success"}

Those who ask for the same model share one fetch. It ends when the last of them goes away; what came is kept, and the
next pull goes on from there. `gemworks pull` in another process is waited for.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from gemworks.errors import CapacityError, DownloadError
from gemworks.server.bodies import read_body
from gemworks.server.ollama.answer import dumped, failed_line
from gemworks.server.ollama.checks import check_may_manage
from gemworks.server.ollama.fields import PullBody
from gemworks.server.openai.document import body_of
from gemworks.server.streams import NDJSON, JSONBytes, finished, open_stream
from gemworks.weights import download, hub

router = APIRouter()

# Often enough for a bar that moves, seldom enough to cost nothing.
_EVERY_S = 0.1

# Each has four connections to the hub and a disk to write to.
_MOST = 4


@router.post("/api/pull", openapi_extra=body_of(PullBody))
async def pull(request: Request) -> Response:
    """Fetch a model by the names of `gemworks pull`."""
    body = await read_body(request, PullBody)
    check_may_manage(request)
    lines = _lines(request, body.named.removesuffix(":latest"))
    if body.stream is not False:
        return await open_stream(request, _dumped(lines), media_type=NDJSON, failed=failed_line(request))

    async def whole() -> Response:
        last: dict[str, Any] = {}
        async for line in lines:
            last = line
        return JSONBytes(dumped(last))

    return await finished(request, whole())


async def _dumped(lines: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async for line in lines:
            yield dumped(line) + b"\n"
    finally:
        await lines.aclose()


async def _lines(request: Request, name: str) -> AsyncGenerator[dict[str, Any], None]:
    state = request.app.state
    if not hasattr(state, "pulls"):
        state.pulls = {}
    pulls: dict[str, _Pull] = state.pulls
    repository = hub.repository_of(name)
    key = f"{repository.id}:{repository.format or ''}" if repository else name
    one = pulls.get(key)
    if one is None:
        if len(pulls) >= _MOST:
            raise CapacityError(f"{_MOST} models are being fetched already: {', '.join(pulls)}. Try again later.")
        one = pulls[key] = _Pull(name)
        one.ended.add_done_callback(lambda _: pulls.pop(key, None))
    one.watchers += 1
    try:
        yield {"status": "pulling manifest"}
        told: dict[str, tuple[int, int]] = {}
        while not one.ended.done():
            await asyncio.wait([one.ended], timeout=_EVERY_S)
            for file, (done, total) in list(one.files.items()):
                if told.get(file) != (done, total):
                    told[file] = (done, total)
                    yield _progress(file, done, total)
        one.ended.result()
        yield {"status": "success"}
    finally:
        one.watchers -= 1
        if one.watchers == 0:
            one.stop()


def _progress(file: str, done: int, total: int) -> dict[str, Any]:
    known = {"total": total} if total >= 0 else {}
    return {"status": f"pulling {file}", "digest": file, **known, "completed": done}


class _Pull:
    """One fetch in a thread of its own. `files`: name -> bytes there and bytes in all; `ended` has what it raised."""

    def __init__(self, name: str):
        self.files: dict[str, tuple[int, int]] = {}
        self.watchers = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        # A daemon: a stalled connection must not keep the server from ending.
        threading.Thread(target=self._run, args=(name,), name="pull", daemon=True).start()

    def stop(self) -> None:
        """End the fetch at its next bytes; what came is kept."""
        self._stopped.set()

    def _run(self, name: str) -> None:
        error: BaseException | None = None
        try:
            download.pull(name, progress=self._progress)
        except BaseException as raised:
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._end, error)
        except RuntimeError:  # the server has ended
            return

    def _progress(self, file: str, done: int, total: int) -> None:
        if self._stopped.is_set():
            raise DownloadError("the pull was stopped. What has been fetched is kept; pull again to go on.")
        self.files[file] = (done, total)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
            self.ended.exception()  # seen, also where nobody watches any more
