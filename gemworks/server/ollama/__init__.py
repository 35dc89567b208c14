"""Ollama's API: /api/..., so that its clients and the programs made for it work with this server.

    chat.py generate.py embed.py       answers; answer.py writes them, options.py and conversation.py read what is asked
    tags.py ps.py show.py version.py   what is here; names.py lists it, facts.py reads it from the files
    pull.py create.py copy.py delete.py blobs.py     models come and go, where the caller may do that (checks.py)

Not here: /api/push, thinking, image generation, which are refused by name.
"""

from fastapi import APIRouter

from gemworks.server.ollama import blobs, chat, copy, create, delete, embed, generate, ps, pull, show, tags, version

router = APIRouter()
for one in (chat, generate, embed, tags, ps, show, pull, create, copy, delete, blobs, version):
    router.include_router(one.router)

__all__ = ["router"]
