"""A GGUF file as a Checkpoint: names, norms and blocks turned into our conventions, tensor by tensor.

    in the file                                        what `read` returns
    F32, F16, BF16 matrix                              a read-only view of the mapping (a copy if not 64-aligned)
    Q8_0, Q4_0 ... (gguf_blocks) matrix                float32, dequantized; `read_quantized` keeps Q4_0 and Q8_0
    norm gain, with 1 added as llama.cpp has it        float32, with the 1 subtracted

The order of q and k rows needs no change: Gemma rotates halves, so converters do not permute them. The vision half
that Ollama keeps in the same file (v.*, mm.*) is skipped.

What the metadata says about generation, under the keys of llama.cpp's converter:

    tokenizer.ggml.bos_token_id, padding_token_id      bos_id, pad_id
    tokenizer.ggml.eos_token_id, eot_token_id          eos_ids; also eos_token_ids (Ollama), and <end_of_turn> where a
                                                       chat template is there: Google's files name <eos> alone
    general.sampling.temp, top_k, top_p                the sampler's defaults
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import (
    Checkpoint,
    GenerationDefaults,
    StoredTensor,
    TensorEntry,
    Vocabulary,
    is_chat_model,
)
from gemworks.weights.config_gguf import EMBED, HEAD, text_config_from_gguf
from gemworks.weights.gguf_blocks import TYPES, dequantize
from gemworks.weights.gguf_file import GGUFFile, StringArray
from gemworks.weights.names import gguf_from_ours, is_norm, ours_from_gguf
from gemworks.weights.strict import Vocabularies, match_tensors

if TYPE_CHECKING:
    from gemworks.ops.weight import Format, QuantWeight

# Arrays are used without a copy where they start on this boundary: XLA wants it.
ALIGNMENT = 64

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}

# Block types whose codes and scales are those of a format of ours.
_QUANTIZED: "dict[str, Format]" = {"Q4_0": "int4-b32", "Q8_0": "int8-b32"}

_NAMES = Vocabularies(ours=ours_from_gguf, published=gguf_from_ours, dtypes=tuple(TYPES))


class GGUFCheckpoint(Checkpoint):
    """An open GGUF file. See Checkpoint; `metadata` is everything its keys say."""

    format = "gguf"

    def __init__(self, path: Path):
        """Map and check `path`. Raises StorageError if it cannot be read, CheckpointError if it is not a Gemma 3."""
        self.path = path
        self._file = GGUFFile(path)
        self.metadata: Mapping[str, Any] = self._file.metadata
        tensors = self._file.tensors
        config = text_config_from_gguf(self.metadata, tensors, str(path))
        stored = [
            StoredTensor(
                published=info.name, shape=info.shape, dtype=info.kind.name, num_bytes=info.num_bytes, file=path
            )
            for info in tensors.values()
        ]
        if not config.tied_head and self._head_is_embedding():
            config = replace(config, tied_head=True)
        self.config = config
        self.entries: dict[str, TensorEntry] = match_tensors(
            f"{path} (1 file)", stored, config, _NAMES, same_bits=lambda *_: True
        )
        self.chat_template = self._text("tokenizer.chat_template")
        self.generation = self._generation()
        self.is_chat = is_chat_model(self._eos_ids() or None, self.chat_template)

    def read(self, name: str) -> np.ndarray:
        """One tensor in our convention; see the table above for dtype and copies."""
        entry = self.entries[name]
        stored = self._file.bytes_of(entry.published)
        if is_norm(name):
            return dequantize(stored, entry.dtype, entry.shape) - np.float32(1)
        if entry.dtype not in FLOATS:
            return dequantize(stored, entry.dtype, entry.shape)
        array = np.frombuffer(stored, FLOATS[entry.dtype]).reshape(entry.shape)
        if self._file.tensors[entry.published].offset % ALIGNMENT == 0:
            return array
        array = array.copy()
        self.release(name)
        return array

    def quantized_format(self, name: str) -> "Format | None":
        """See Checkpoint.quantized_format: Q4_0 and Q8_0 matrices."""
        entry = self.entries[name]
        return _QUANTIZED.get(entry.dtype) if len(entry.shape) == 2 else None

    def read_quantized(self, name: str) -> "QuantWeight | None":
        """See Checkpoint.read_quantized. Copies, because a file mixes codes with scales."""
        if (format := self.quantized_format(name)) is None:
            return None
        from gemworks.ops.weight import QuantWeight, code_shapes

        entry = self.entries[name]
        F, D = entry.shape
        (code_shape, code_dtype), (scale_shape, scale_dtype) = code_shapes(format, F, D)
        blocks = np.frombuffer(self._file.bytes_of(entry.published), np.uint8).reshape(*scale_shape, -1)
        scales = blocks[:, :, :2].copy().view(scale_dtype).reshape(scale_shape)
        codes = blocks[:, :, 2:].copy().view(code_dtype).reshape(code_shape)
        return QuantWeight(codes, scales, format, (F, D))

    def raw(self, name: str) -> memoryview:
        """The stored blocks of one tensor; norms still with their 1."""
        return self._file.bytes_of(self.entries[name].published)

    def release(self, name: str) -> None:
        """Let the system drop the file's pages of one tensor."""
        self._file.release(self.entries[name].published)

    def close(self) -> None:
        """Let go of the mapping; arrays that point into it keep it alive."""
        self._file.close()

    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary exactly as stored, or None if there is none; Tokenizer.from_vocabulary knows writers' habits.

        Raises CheckpointError if the keys do not describe a SentencePiece vocabulary.
        """
        model = self.metadata.get("tokenizer.ggml.model", "none")
        if model == "none":
            return None
        if model != "llama":
            raise self._key_error("model", f"must be llama (SentencePiece), got {str(model)[:60]!r}")
        pieces = self.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(pieces, StringArray):
            raise self._key_error("tokens", "must be an array of strings")
        scores, types = self._column("scores", len(pieces), "f"), self._column("token_type", len(pieces), "iu")
        return Vocabulary(list(pieces), scores.tolist(), types.tolist())

    def _column(self, key: str, rows: int, kinds: str) -> np.ndarray:
        column = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds or len(column) != rows:
            found = f"{len(column)} of {column.dtype}" if isinstance(column, np.ndarray) else "none"
            raise self._key_error(key, f"must be an array of {rows} numbers like tokens, got {found}")
        return column

    def _key_error(self, key: str, text: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: tokenizer.ggml.{key} {text}.\nUse a GGUF converted from the release's tokenizer.model."
        )

    def _head_is_embedding(self) -> bool:
        """True where a converter stored the tied head a second time."""
        embed, head = self._file.tensors[EMBED], self._file.tensors[HEAD]
        same_form = (embed.shape, embed.kind) == (head.shape, head.kind)
        return same_form and self._file.bytes_of(EMBED) == self._file.bytes_of(HEAD)

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None

    def _generation(self) -> GenerationDefaults:
        default = GenerationDefaults()
        return GenerationDefaults(
            eos_ids=self._eos_ids() or default.eos_ids,
            bos_id=self._token("bos_token_id", default.bos_id),
            pad_id=self._token("padding_token_id", default.pad_id),
            temperature=self._sampling("temp", default.temperature),
            top_k=int(self._sampling("top_k", default.top_k)),
            top_p=self._sampling("top_p", default.top_p),
        )

    def _eos_ids(self) -> tuple[int, ...]:
        ids = [self._token("eos_token_id", -1), self._token("eot_token_id", -1)]
        several = self.metadata.get("tokenizer.ggml.eos_token_ids")
        if isinstance(several, np.ndarray) and several.dtype.kind in "iu":
            ids += several.tolist()
        pieces = self.metadata.get("tokenizer.ggml.tokens")
        if self.chat_template and isinstance(pieces, StringArray):
            token = pieces.find("<end_of_turn>")
            ids.append(-1 if token is None else token)
        return tuple(dict.fromkeys(token for token in ids if 0 <= token < self.config.vocab_size))

    def _token(self, key: str, default: int) -> int:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        return value if type(value) is int and 0 <= value < self.config.vocab_size else default

    def _sampling(self, key: str, default: float) -> float:
        value = self.metadata.get(f"general.sampling.{key}", default)
        return value if type(value) in (int, float) and 0 <= value < float("inf") else default


def open_gguf(path: Path) -> GGUFCheckpoint:
    """Open and check one GGUF file. Raises StorageError or CheckpointError, as GGUFCheckpoint does."""
    return GGUFCheckpoint(path)
