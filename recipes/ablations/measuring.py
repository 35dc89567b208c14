"""What is measured of a model: the loss on every held-out target, and the bytes its keys and values take."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.data.batches import PackedSource
from gemworks.engine.runner import Runner
from gemworks.model.config import GEMMA3_1B, LayerSpec, TextConfig
from gemworks.model.gemma3 import skeleton
from gemworks.ops.train.head import token_logits
from gemworks.train.feed import rows_of
from gemworks.train.forward import Rows, head_rows, hidden, model_of

EDGES = (0, 32, 64, 128, 256, 512)  # of positions in a text


def held_out(params: Mapping[str, Any], config: TextConfig, source: PackedSource) -> dict[str, Any]:
    """Return the mean loss over all held-out targets in nats, that of each row, and that of each range of positions."""

    @jax.jit
    def losses(params: Mapping[str, jax.Array], rows: Rows) -> jax.Array:
        model = model_of(params, config)
        log_total, chosen = token_logits(
            hidden(model, rows, remat=False), head_rows(model), jnp.asarray(rows.targets_BT)[..., None]
        )
        return log_total - chosen[..., 0]

    nll, weight, position = [], [], []
    for step in range(len(source)):
        rows = rows_of(source.batch(step))
        nll.append(np.asarray(losses(params, rows), np.float64) * rows.loss_mask_BT)
        weight.append(rows.loss_mask_BT)
        position.append(rows.position_BT)
    nll_RT, weight_RT, position_RT = map(np.concatenate, (nll, weight, position))
    bucket = np.digitize(position_RT, EDGES)
    by_position = [_mean(nll_RT[bucket == i], weight_RT[bucket == i]) for i in range(1, len(EDGES) + 1)]
    return {
        "loss": _mean(nll_RT, weight_RT),
        "targets": int(weight_RT.sum()),
        "rows": [round(x, 6) for x in (nll_RT.sum(axis=1) / np.maximum(weight_RT.sum(axis=1), 1)).tolist()],
        "by_position": by_position,
    }


def cache_bytes(config: TextConfig, context: int) -> int:
    """Return the bytes of the pools that the engine allocates for one sequence of `context` tokens, in bf16.

    The pools are made, and their arrays counted, page 0 of padding included; weights are not needed.
    """
    runner = Runner(skeleton(config, jnp.bfloat16), context=context, num_sequences=1, kv_dtype=jnp.bfloat16)
    return runner.kv_bytes


# (name, local layers to a global one or None, window) and contexts that are measured at the 1B's shape.
RELEASED = (
    ("global only", 0, 512),
    ("1:1, window 512", 1, 512),
    ("3:1, window 512", 3, 512),
    ("5:1, window 512", 5, 512),
    ("7:1, window 512", 7, 512),
    ("5:1, window 1,024", 5, 1024),
    ("5:1, window 2,048", 5, 2048),
    ("5:1, window 4,096", 5, 4096),
)
CONTEXTS = (4096, 8192, 16_384, 32_768)


def released_cache(contexts: Sequence[int] = CONTEXTS) -> list[dict[str, Any]]:
    """Return {name, context, bytes} of the 1B's shape with each pattern of layers; its own is 5:1 with 512."""
    local, global_ = GEMMA3_1B.local_spec, GEMMA3_1B.global_spec
    assert local is not None and global_ is not None
    found = []
    for name, ratio, window in RELEASED:
        spec: LayerSpec = replace(local, window=window)
        layers = tuple(global_ if (i + 1) % (ratio + 1) == 0 else spec for i in range(len(GEMMA3_1B.layers)))
        config = replace(GEMMA3_1B, layers=layers)
        found += [{"name": name, "context": one, "bytes": cache_bytes(config, one)} for one in contexts]
    return found


def _mean(nll: np.ndarray, weight: np.ndarray) -> float | None:
    return float(nll.sum() / weight.sum()) if weight.sum() else None
