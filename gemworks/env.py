"""The only reader of os.environ. Everything the environment can change is a function here.

GEMWORKS_HOME       where pulled and created models live      (~/.gemworks)
GEMWORKS_CACHE      what can be deleted at any time           ($XDG_CACHE_HOME/gemworks, ~/.cache/gemworks)
GEMWORKS_PACKED_LIMIT  room for packed models, as 20GB     (50 GB, or half of what the disk has left)
GEMWORKS_BACKEND    force a backend for every op              (chosen by ops.select)
GEMWORKS_ISA        instruction set of the CPU kernels        (the widest this CPU has)
GEMWORKS_THREADS    threads of the CPU kernels                (the cores this process may use)
GEMWORKS_HOST       where `gemworks ps` and `stop` find a server  (127.0.0.1:11434)
GEMWORKS_API_KEY    the key they send to it                   (none)
HF_TOKEN            token for gated repositories              (also read by huggingface_hub itself)
HF_ENDPOINT         another hub                               (--endpoint wins)
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from gemworks.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def home() -> Path:
    """Directory of pulled and created models."""
    return Path(os.environ.get("GEMWORKS_HOME") or Path.home() / ".gemworks")


def cache() -> Path:
    """Directory of things that are rebuilt when missing."""
    if own := os.environ.get("GEMWORKS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemworks"


def packed_limit() -> int | None:
    """Bytes that packed models may take together, or None for the default. 0 keeps none."""
    text = os.environ.get("GEMWORKS_PACKED_LIMIT", "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.lower())
    if match is None:
        raise ConfigError(f'GEMWORKS_PACKED_LIMIT must be a size such as 20GB, got "{text}".')
    return int(float(match[1]) * _UNITS[match[2]])


def forced_backend() -> str | None:
    """Backend every op must use, or None to let ops.select choose."""
    return os.environ.get("GEMWORKS_BACKEND") or None


def forced_isa() -> str | None:
    """Instruction set the CPU kernels must use, or None to let the machine decide."""
    return os.environ.get("GEMWORKS_ISA") or None


def threads() -> int | None:
    """Threads the CPU kernels must use, or None for as many as can run at once."""
    text = os.environ.get("GEMWORKS_THREADS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ConfigError(f'GEMWORKS_THREADS must be a number from 1 to 1024, got "{text}".')
    return int(text)


def compiler_settings() -> dict[str, str]:
    """Variables that change what is computed: XLA's, jax's, and our own choices of backend, kernels and threads."""
    own = ("GEMWORKS_BACKEND", "GEMWORKS_ISA", "GEMWORKS_THREADS")
    return {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_")) or name in own}


def server_address() -> str | None:
    """Where a running server is: a host, host:port or URL; None for this machine's."""
    return os.environ.get("GEMWORKS_HOST", "").strip() or None


def api_key() -> str | None:
    """The API key that the command line sends to a running server, or None."""
    return os.environ.get("GEMWORKS_API_KEY", "").strip() or None


def hub_token() -> str | None:
    """Token for gated repositories, from the usual variables."""
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or None


def hub_endpoint() -> str | None:
    """Address of the hub, or None for the public one."""
    return os.environ.get("HF_ENDPOINT") or None


def for_child(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `changes`, for a process to start; None takes a variable away."""
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}
