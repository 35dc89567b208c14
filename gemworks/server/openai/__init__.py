"""The OpenAI API: /v1/..., and vLLM's /tokenize and /detokenize.

Request fields are those of the official reference; each is honoured, has no effect on an answer by its meaning (`user`,
`metadata`), or is refused by name. Beyond them: top_k, min_p, repetition_penalty, stop_token_ids and pan_and_scan.
"""

from fastapi import APIRouter

from gemworks.server.openai import chat, completions, embeddings, models, responses, tokenize
from gemworks.server.openai.document import document

router = APIRouter()
for part in (models, chat, completions, responses, embeddings, tokenize):
    router.include_router(part.router)

__all__ = ["document", "router"]
