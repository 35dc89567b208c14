"""Which replica has seen the beginning of a prompt: an estimate, kept by whoever hands requests to replicas.

A prompt's text is cut into blocks of 128 characters (about 32 tokens, two pages of the cache), and each block's key
hashes it and all before it, so equal keys mean equal beginnings:

    "You are ... | ... a long | document"    keys  k1  k2  k3
    "You are ... | ... a long | other"             k1  k2  k4      shares two blocks with the first

Not known here: what a replica's cache has dropped since, and what other routers sent it. A wrong guess costs a prefill.
"""

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

BLOCK = 128  # characters
MAX_BLOCKS = 256  # of a prompt are looked at: 32,768 characters
MAX_KEYS = 100_000  # of all prompts; 16 bytes and a slot of the table each, about 15 MB


def prefix_keys(body: bytes) -> tuple[bytes, ...]:
    """Return the keys of a request's prompt, shortest beginning first; none for a body without one, or a short one."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):  # the latter: brackets in brackets, a thousand deep
        return ()
    if not isinstance(asked, Mapping):
        return ()
    text = prompt_text(asked)[: BLOCK * MAX_BLOCKS]
    keys, before = [], b""
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
        # surrogatepass: JSON may hold half a surrogate pair, which is the server's to refuse.
        block = text[start : start + BLOCK].encode("utf-8", "surrogatepass")
        before = blake2b(before + block, digest_size=16).digest()
        keys.append(before)
    return tuple(keys)


def prompt_text(asked: Mapping[str, Any]) -> str:
    """Return what a request's prompt begins with, as text that is equal where prompts are: system, messages, prompt.

    Not the template's text: two requests of one conversation are alike here as they are there.
    """
    parts = [asked.get(name) for name in ("model", "system", "instructions", "messages", "input", "prompt")]
    # Without its closing bracket a conversation begins as its next turn does.
    return "".join(json.dumps(part, ensure_ascii=False).rstrip(']}"') for part in parts if part is not None)


class PrefixTable:
    """Key -> replica that was last sent a prompt with it; the least recently used go first. For one event loop."""

    def __init__(self, *, limit: int = MAX_KEYS):
        self._replica_of: OrderedDict[bytes, Hashable] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._replica_of)

    def find(self, keys: Sequence[bytes]) -> tuple[Hashable | None, int]:
        """Return the replica that saw the longest beginning, and its blocks; (None, 0) where none did."""
        for i in range(len(keys) - 1, -1, -1):
            if (replica := self._replica_of.get(keys[i])) is not None:
                return replica, i + 1
        return None, 0

    def note(self, keys: Sequence[bytes], replica: Hashable) -> None:
        """Remember that a prompt went to a replica."""
        for key in keys:
            self._replica_of[key] = replica
            self._replica_of.move_to_end(key)
        while len(self._replica_of) > self._limit:
            self._replica_of.popitem(last=False)

    def forget(self, replica: Hashable) -> None:
        """Forget all about a replica that is gone."""
        for key in [key for key, value in self._replica_of.items() if value == replica]:
            del self._replica_of[key]


def choose(preferred: Hashable | None, loads: Mapping[Hashable, int], *, max_ahead: int) -> list[list[Hashable]]:
    """Return replicas in ranks, best first, each rank alike but for its load.

    The preferred one comes first while it has at most `max_ahead` more requests than the one with the fewest: beyond
    that, computing a prompt again elsewhere is sooner done than waiting.
    """
    if preferred not in loads or loads[preferred] - min(loads.values()) > max_ahead:
        return [list(loads)]
    return [[preferred], [one for one in loads if one != preferred]]
