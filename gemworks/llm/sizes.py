"""How large an engine the offline API makes where nobody says: enough for a chat and a few prompts at once."""

from typing import Any

from gemworks import machine
from gemworks.engine.memory import KVPlan, plan_kv, window_pages
from gemworks.errors import CapacityError, ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.costs import weight_bytes

# Reserved when the model is loaded: 43 MiB for 1B, 276 for 4B, 1,056 for 27B. `context=` goes to the model's limit.
DEFAULT_CONTEXT = 8192

# What costs little: this, or a sixteenth of the weights. Rings cost most by far: 11.5 MB a sequence for 1B, 121 for 4B.
_LITTLE_BYTES = 32_000_000
_MOST_SEQUENCES = 8

# Windows of local keys and values that the prefix cache keeps: a chat's last turn, and one while its next one runs.
_KEPT_WINDOWS = 2


def engine_sizes(config: TextConfig, *, context: int, kv: str, max_sequences: int | None, draft: int = 0) -> KVPlan:
    """Return the pools of an engine, of `pool_sizes`. Raises CapacityError where this machine has no room for them."""
    sizes = pool_sizes(config, context=context, kv=kv, max_sequences=max_sequences, draft=draft)
    available = machine.memory().available
    if available and sizes.total_bytes > available:
        raise CapacityError(
            f"keys and values of {context:,} tokens of context and {sizes.max_sequences} sequences need "
            f"{sizes.total_bytes / 1e9:.2f} GB, and {available / 1e9:.2f} GB are free here.\n"
            'Use a smaller context or fewer sequences, or kv="int8", which halves them.'
        )
    return sizes


def pool_sizes(config: TextConfig, *, context: int, kv: str, max_sequences: int | None, draft: int = 0) -> KVPlan:
    """Return the pools of an engine: the sequences asked for, or as many as cost little beside the weights.

    The global layers' pages hold every sequence at its longest as far as that costs little too, twice that where the
    sequences were asked for, and at least a sixteenth more than one context: several prompts share them, and what is
    left keeps earlier ones. Sixteen sequences of 512 tokens in one context's pages were three at a time, at half speed.
    """
    if max_sequences is not None and max_sequences < 1:
        raise ConfigError(f"max_sequences must be at least 1, got {max_sequences}.")
    told: dict[str, Any] = {"context": context, "kv_dtype": kv, "draft": draft}
    one = plan_kv(config, **told, local_pages=0)
    room = max(_LITTLE_BYTES, weight_bytes(config, "int4-b32") // 16)
    page_room = room if max_sequences is None else 2 * room
    if max_sequences is None:
        most = max(1, min(_MOST_SEQUENCES, room // max(one.ring_bytes, 1)))
        max_sequences = 1 << most.bit_length() - 1
    local_pages = _KEPT_WINDOWS * window_pages(one.window, one.page_size) + 1 if one.window else 0
    of_one = -(-context // one.page_size)
    affordable = page_room // one.page_bytes if one.page_bytes else 0
    pages = max(2, of_one * 17 // 16 + 1, min(max_sequences * of_one * 17 // 16 + 1, affordable))
    return plan_kv(config, **told, max_sequences=max_sequences, pages=pages, local_pages=local_pages)
