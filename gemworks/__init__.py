"""Gemworks: the whole life of the Gemma 3 family in one system. `from gemworks import LLM` is the front door."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemworks.llm import LLM, Chunk, Completion, PromptLogprobs
    from gemworks.llm.guard import Guard

__version__ = "0.1.0"

# Loaded on first use: importing the package must not start jax.
_HOMES = {
    **{name: "gemworks.llm" for name in ("LLM", "Chunk", "Completion", "PromptLogprobs")},
    "Guard": "gemworks.llm.guard",
}

__all__ = ["LLM", "Chunk", "Completion", "Guard", "PromptLogprobs", "__version__"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module gemworks has no attribute {name}")
