"""A checkpoint that is open for reading: its config, its tensors by our names, and what it says about generation.

`open_checkpoint` finds out the format; gemworks.weights.hf reads directories of safetensors and gemworks.weights.gguf
reads GGUF files. Both map their files and check every tensor's name, shape and dtype on opening (strict.py), so a
Checkpoint that exists is complete. Nothing is copied until `read`, and mostly not even then.

Not here: the vision half of the larger models, whose tensors are known and skipped.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gemworks.errors import CheckpointError, StorageError
from gemworks.model.config import TextConfig

if TYPE_CHECKING:  # it brings jax, which listing models must not wait for
    from gemworks.ops.weight import Format as QuantFormat
    from gemworks.ops.weight import QuantWeight

Format = Literal["safetensors", "gguf"]

# <end_of_turn> in the official vocabulary: a chat model stops on it, a pre-trained one does not.
END_OF_TURN_ID = 106


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor as its file lists it. `shape` is [out, in] as published; `num_bytes` is what it takes in the file."""

    published: str
    shape: tuple[int, ...]
    dtype: str  # BF16, F16, F32, Q4_0 ..., or a format of ops/weight.py where it is a pair of codes and scales
    num_bytes: int
    file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry(StoredTensor):
    """A stored tensor that has a place in the model; `name` is ours."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """How the checkpoint asks to be sampled. The values here are those of a file that says nothing (spec 13)."""

    eos_ids: tuple[int, ...] = (1,)
    bos_id: int = 2
    pad_id: int = 0
    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    do_sample: bool = True


class Vocabulary(NamedTuple):
    """A vocabulary inside a checkpoint. Types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""

    pieces: Sequence[str | bytes]
    scores: Sequence[float]
    types: Sequence[int]


class Checkpoint(abc.ABC):
    """An open, complete, mapped checkpoint. Close it, or use it in a `with`, when the model holds its own copies.

    `entries` lists exactly the tensors of `names.expected_shapes(config)`, in that order. Arrays that `read` returned
    may point into the mapping: they keep it alive, also after `close`.
    """

    path: Path
    format: Format
    config: TextConfig
    generation: GenerationDefaults
    entries: dict[str, TensorEntry]
    chat_template: str | None  # jinja source, as found
    is_chat: bool | None  # None where nothing in the files tells

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One tensor in our convention ([out, in]; zero-centred norms), mapped from the file where that is possible.

        Float tensors keep their stored dtype (float32, float16, ml_dtypes.bfloat16); block-quantized ones come
        dequantized to float32. The array is read-only or private: writing never reaches the file.
        """

    def quantized_format(self, name: str) -> QuantFormat | None:
        """The format a matrix is stored in, or None where it is stored otherwise, or is no matrix."""
        return None

    def read_quantized(self, name: str) -> QuantWeight | None:
        """The matrix with the codes and scales the file has, none changed; None where `quantized_format` is None.

        Arrays may point into the mapping, as those of `read`. Scales are as the file has them, finite or not.
        """
        return None

    @abc.abstractmethod
    def raw(self, name: str) -> memoryview:
        """The bytes of one tensor exactly as the file stores them; of a pair, the codes."""

    @abc.abstractmethod
    def release(self, name: str) -> None:
        """Let the system drop the file's pages of a tensor that was copied. Harmless if it is read again."""

    @abc.abstractmethod
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary inside the file (GGUF), or None where it lies beside the weights (tokenizer.json)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the mapping back. `read` must not be called any more; calling `close` again does nothing."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the text model's tensors as stored."""
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def num_parameters(self) -> int:
        """Elements of the text model's tensors, a tied head counted once."""
        return sum(prod(entry.shape) for entry in self.entries.values())

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def is_chat_model(eos_ids: Sequence[int] | None, chat_template: str | None) -> bool | None:
    """True if a chat template is there or <end_of_turn> ends an answer; None if the files say neither."""
    if chat_template:
        return True
    return None if eos_ids is None else END_OF_TURN_ID in eos_ids


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory, a .safetensors file, its index, or a .gguf file, and check it completely.

    Raises StorageError if the file cannot be read, CheckpointError if it is not a whole Gemma 3 text model.
    """
    path = Path(path).expanduser()
    try:
        gguf = _find_gguf(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    if gguf is not None:
        from gemworks.weights.gguf import open_gguf

        return open_gguf(gguf)
    from gemworks.weights.hf import open_hf

    return open_hf(path)


def _find_gguf(path: Path) -> Path | None:
    """The .gguf file that `path` means, or None if it means safetensors. Says what is wrong if it means neither."""
    if not path.exists():
        raise StorageError(f"{path}: there is no such file or directory.")
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
            return None
        with path.open("rb") as file:  # a model pulled by hash has no suffix
            if file.read(4) == b"GGUF":
                return path
        raise CheckpointError(
            f"{path} must be a .gguf file, a .safetensors file or a directory of one, and its name says neither.\n"
            "Point at the directory that holds config.json and model.safetensors, or at a .gguf file."
        )
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    models = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]
    if len(models) == 1:
        return path / models[0]
    if models:
        raise CheckpointError(
            f"{path} must hold one model, and it holds {len(models)} .gguf files: {', '.join(models[:10])}.\n"
            f"Name the one to load, as in {path / models[0]}."
        )
    if any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        raise CheckpointError(
            f"{path} must hold safetensors or GGUF, and its weights are pickles, which can run code when opened.\n"
            "Save the model again with safe_serialization=True, or pull the safetensors release."
        )
    raise CheckpointError(
        f"{path} must hold model.safetensors (or its index and shards) or a .gguf file, and it holds "
        f"{', '.join(names[:10]) or 'nothing'}.\nPoint at the directory of a downloaded model, or pull one by name."
    )
