"""How large an engine the offline API makes where nobody says: enough for a chat and a few prompts at once."""

from typing import Any

from gemworks import machine
from gemworks.engine.memory import KVPlan, plan_kv, window_pages
from gemworks.errors import CapacityError, ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.costs import weight_bytes

# Reserved when the model is loaded: 43 MiB for 1B, 276 for 4B, 1,056 for 27B. `context=` goes to the model's limit.
DEFAULT_CONTEXT = 8192

# Rings cost most by far: 11.5 MB a sequence for 1B, 121 for 4B. Those of all sequences take this at most, or a
# sixteenth of the weights.
_RINGS_BYTES = 32_000_000
_MOST_SEQUENCES = 8

# Windows of local keys and values that the prefix cache keeps: a chat's last turn, and one while its next one runs.
_KEPT_WINDOWS = 2


def engine_sizes(config: TextConfig, *, context: int, kv: str, max_sequences: int | None, draft: int = 0) -> KVPlan:
    """Return the pools of an engine: the sequences asked for, or as many as cost little beside the weights.

    The global layers' pages hold a sixteenth more than one context: several prompts share them, and what is left keeps
    earlier ones. Raises CapacityError where this machine has no room for them.
    """
    if max_sequences is not None and max_sequences < 1:
        raise ConfigError(f"max_sequences must be at least 1, got {max_sequences}.")
    told: dict[str, Any] = {"context": context, "kv_dtype": kv, "draft": draft}
    one = plan_kv(config, **told, local_pages=0)
    if max_sequences is None:
        room = max(_RINGS_BYTES, weight_bytes(config, "int4-b32") // 16)
        most = max(1, min(_MOST_SEQUENCES, room // max(one.ring_bytes, 1)))
        max_sequences = 1 << most.bit_length() - 1
    local_pages = _KEPT_WINDOWS * window_pages(one.window, one.page_size) + 1 if one.window else 0
    pages = max(2, -(-context // one.page_size) * 17 // 16 + 1)
    sizes = plan_kv(config, **told, max_sequences=max_sequences, pages=pages, local_pages=local_pages)
    available = machine.memory().available
    if available and sizes.total_bytes > available:
        raise CapacityError(
            f"keys and values of {context:,} tokens of context and {max_sequences} sequences need "
            f"{sizes.total_bytes / 1e9:.2f} GB, and {available / 1e9:.2f} GB are free here.\n"
            'Use a smaller context or fewer sequences, or kv="int8", which halves them.'
        )
    return sizes
