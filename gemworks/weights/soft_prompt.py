"""A soft prompt in PEFT's format (prompt tuning): vectors in the place of the first tokens of every text.

adapter_config.json          "peft_type": "PROMPT_TUNING", "num_virtual_tokens": P, "token_dim": D
adapter_model.safetensors    prompt_embeddings [P, D], as the first layer takes them: nothing scales them
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gemworks.errors import CheckpointError
from gemworks.model.config import TextConfig
from gemworks.weights.adapter_config import CONFIG, SOFT_PROMPT, WEIGHTS, check_files
from gemworks.weights.config_json import read_json
from gemworks.weights.safetensors import NUMPY_DTYPES, SafetensorsFile

KIND, TENSOR = SOFT_PROMPT, "prompt_embeddings"

# P soft tokens, D model width


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """A soft prompt in memory: rows_PD, fp32."""

    path: Path
    rows_PD: np.ndarray = field(repr=False)


def is_soft_prompt(path: str | Path) -> bool:
    """Return whether a directory's config says that it is one. Raises as check_files does."""
    path = Path(path).expanduser()
    check_files(path)
    return read_json(path / CONFIG).get("peft_type") == KIND


def read_soft_prompt(path: str | Path, config: TextConfig) -> SoftPrompt:
    """Read the soft prompt in a directory, for a model of this config.

    Raises StorageError if a file cannot be read, CheckpointError if it is none of such a model.
    """
    path = Path(path).expanduser()
    check_files(path)
    told = read_json(path / CONFIG)
    if told.get("peft_type") != KIND:
        raise CheckpointError(
            f"{path / CONFIG} must describe a soft prompt, and peft_type is {told.get('peft_type')!r}."
        )
    if (modules := told.get("num_transformer_submodules") or 1) != 1:
        raise CheckpointError(
            f"{path / CONFIG} must be a decoder's, and num_transformer_submodules is {modules!r}: another kind.\n"
            "Use one that was trained for this model."
        )
    file = SafetensorsFile(path / WEIGHTS)
    try:
        wanted = told.get("num_virtual_tokens"), config.model_dim
        span = file.tensors.get(TENSOR)
        if span is None or len(file.tensors) != 1 or tuple(span.shape) != wanted or span.dtype not in NUMPY_DTYPES:
            got = ", ".join(f"{name} {list(one.shape)} {one.dtype}" for name, one in file.tensors.items()) or "nothing"
            raise CheckpointError(
                f"{path / WEIGHTS} must hold {TENSOR} {list(wanted)} alone, as floats, and it holds {got[:500]}.\n"
                "A soft prompt works with the model it was trained for."
            )
        rows_PD = file.array(TENSOR).astype(np.float32)
    finally:
        file.close()
    if not np.isfinite(rows_PD).all():
        raise CheckpointError(
            f"{path / WEIGHTS} must hold finite numbers, and {TENSOR} does not.\n"
            "The training that made it went wrong, or the file was damaged."
        )
    return SoftPrompt(path, rows_PD)
