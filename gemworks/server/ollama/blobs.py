"""HEAD and POST /api/blobs/:digest: files that /api/create makes a model of."""

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from gemworks.errors import NotFoundError
from gemworks.server.ollama import uploads
from gemworks.server.ollama.checks import check_may_manage

router = APIRouter()

# Hashed and written in one go, beside the event loop.
_BLOCK_BYTES = 1 << 20


@router.head("/api/blobs/{digest}", include_in_schema=False)
async def has_blob(request: Request, digest: str) -> Response:
    """200 where the file is here, else 404."""
    check_may_manage(request)
    if uploads.blob_size(digest) is None:
        raise NotFoundError(f"blob {digest[:80]!r} not found.")
    return Response()


@router.post("/api/blobs/{digest}", response_model=None)
async def create_blob(request: Request, digest: str) -> Response:
    """Take a file, and check that it is the one its digest says."""
    check_may_manage(request)
    if uploads.blob_size(digest) is not None:
        return Response()
    told = request.headers.get("content-length", "")
    writer = await asyncio.to_thread(uploads.BlobWriter, digest, int(told) if told.isdecimal() else None)
    try:
        block = bytearray()
        async for piece in request.stream():
            block += piece
            if len(block) >= _BLOCK_BYTES:
                await asyncio.to_thread(writer.write, bytes(block))
                block.clear()
        await asyncio.to_thread(writer.write, bytes(block))
        await asyncio.to_thread(writer.finish)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    finally:
        writer.drop()
    return Response(status_code=201)
