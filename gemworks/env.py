"""The only reader of os.environ. Everything the environment can change is a function here.

GEMWORKS_HOME       where pulled and created models live      (~/.gemworks)
GEMWORKS_CACHE      what can be deleted at any time           ($XDG_CACHE_HOME/gemworks, ~/.cache/gemworks)
GEMWORKS_BACKEND    force a backend for every op              (chosen by ops.select)
HF_TOKEN            token for gated repositories              (also read by huggingface_hub itself)
HF_ENDPOINT         another hub                               (--endpoint wins)
"""

import os
from pathlib import Path


def home() -> Path:
    """Directory of pulled and created models."""
    return Path(os.environ.get("GEMWORKS_HOME") or Path.home() / ".gemworks")


def cache() -> Path:
    """Directory of things that are rebuilt when missing."""
    if own := os.environ.get("GEMWORKS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemworks"


def forced_backend() -> str | None:
    """Backend every op must use, or None to let ops.select choose."""
    return os.environ.get("GEMWORKS_BACKEND") or None


def hub_token() -> str | None:
    """Token for gated repositories, from the usual variables."""
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or None


def hub_endpoint() -> str | None:
    """Address of the hub, or None for the public one."""
    return os.environ.get("HF_ENDPOINT") or None
