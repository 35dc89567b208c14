"""An adapter merged into its model: a model directory that needs no adapter.

    LoRA    W + scale B A               DoRA    m / |W + scale B A| (W + scale B A), row by row

Dtypes are PEFT's (merge_and_unload): the sum is made in fp32 and rounded once, to the dtype the matrix is stored in. A
matrix that is stored quantized is written in bf16; all others stay as they are stored. Merging rounds: in bf16 the
merged model's logits are the adapter's within what bf16 holds of W, in fp32 they are the same.
"""

from pathlib import Path

import numpy as np

from gemworks.errors import ConfigError
from gemworks.quant.formats import row_chunks
from gemworks.weights import hub, soft_prompt
from gemworks.weights.adapter import LoraDelta, read_adapter
from gemworks.weights.atomic import check_target
from gemworks.weights.checkpoint import Checkpoint, open_checkpoint
from gemworks.weights.convert import SAFETENSORS_TYPES, cast, check_apart, source_of, write_directory
from gemworks.weights.quantized import QuantSource
from gemworks.weights.safetensors import NUMPY_DTYPES
from gemworks.weights.safetensors_write import Progress
from gemworks.weights.save import Source

# F output width, D input width, r rank


def merge(
    model: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `model` (a name, directory or file) with the adapter of the directory `adapter` merged in, as `out`.

    dtype: of all matrices, bfloat16, float32 or float16; None: as stored. Raises ConfigError for a soft prompt, which
    is no change of weights, and what reading both or writing raises.
    """
    source, folder, target = hub.resolve(model).path, Path(adapter).expanduser(), Path(out).expanduser()
    if dtype is not None and dtype not in SAFETENSORS_TYPES:
        raise ConfigError(f'dtype must be one of {", ".join(SAFETENSORS_TYPES)}, got "{dtype}".')
    if soft_prompt.is_soft_prompt(folder):
        raise ConfigError(
            f"{folder} must hold matrices to be merged, and it is a soft prompt.\nRun the model with --adapter instead."
        )
    check_apart(source, target)
    check_apart(folder, target)
    check_target(target, force=force, kind="directory")
    with open_checkpoint(source) as checkpoint:
        deltas = read_adapter(folder, checkpoint.config).deltas
        wanted = None if dtype is None else SAFETENSORS_TYPES[dtype]
        sources: dict[str, Source | QuantSource] = {
            name: source_of(checkpoint, name, wanted) for name in checkpoint.entries
        }
        for (layer, matrix), delta in deltas.items():
            half = "attn" if matrix in ("q", "k", "v", "o") else "ffw"
            name = f"layers.{layer}.{half}.{matrix}.weight"
            sources[name] = _merged_source(checkpoint, name, delta, source_of(checkpoint, name, wanted))
        write_directory(checkpoint, target, sources, force=force, progress=progress)


def merged(weight_FD: np.ndarray, delta: LoraDelta) -> np.ndarray:
    """Return the matrix with the additions, fp32."""
    F, D = weight_FD.shape
    result = np.empty((F, D), np.float32)
    for rows in row_chunks(F, D):
        total = weight_FD[rows].astype(np.float32) + delta.b_Fr[rows] @ delta.a_rD
        if delta.magnitude_F is not None:
            total *= (delta.magnitude_F[rows] / np.linalg.norm(total, axis=1))[:, None]
        result[rows] = total
    return result


def _merged_source(checkpoint: Checkpoint, name: str, delta: LoraDelta, plain: Source) -> Source:
    def produce() -> np.ndarray:
        total = merged(checkpoint.read(name), delta)
        return cast(total, NUMPY_DTYPES[plain.dtype], f"{name} with the adapter")

    return Source(plain.dtype, produce, plain.done)
