"""Text <-> token ids and chat rendering. No jax here."""

from gemworks.tokenizer.chat import (
    TEMPLATE,
    chat_text,
    continue_chat,
    is_gemma_template,
    render_chat,
    render_plain,
)
from gemworks.tokenizer.stream import StreamDecoder
from gemworks.tokenizer.tokenizer import Tokenizer

__all__ = [
    "TEMPLATE",
    "StreamDecoder",
    "Tokenizer",
    "chat_text",
    "continue_chat",
    "is_gemma_template",
    "render_chat",
    "render_plain",
]
