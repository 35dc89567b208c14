"""Any checkpoint to a GGUF file that llama.cpp loads. Tensors stream: one is in memory at a time.

What a tensor is stored as, by outtype:

    outtype      norms   embedding (and head)      other matrices
    f32 f16 bf16 F32     the outtype               the outtype
    q8_0         F32     Q8_0                      Q8_0
    q4_0         F32     Q8_0; Q4_0 with `pure`    Q4_0

Norms get 1 added, as every GGUF reader expects. The embedding is also the head of Gemma 3, and 4 bits there cost
quality that 4 bits elsewhere do not; Q8_0 of 262,144 rows of 1B is 160 MB more than Q4_0. A row that is no multiple of
32 is stored in F16, as llama.cpp's quantizer does. Blocks that are in the wanted type already are copied bit for bit,
and matrices that a caller has quantized are written with the codes they have.

Tensors are aligned to 32 bytes, the format's default: general.alignment could say 64, but llama.cpp's quantizer copies
that key and then aligns to 32. The key gemworks.padding makes the data begin on 64, and the tensors of a float file are
multiples of 64 in every released shape, so XLA can use them where they lie.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.errors import CheckpointError, ConfigError
from gemworks.weights.atomic import replacing
from gemworks.weights.checkpoint import Checkpoint, GenerationDefaults, TensorEntry, Vocabulary
from gemworks.weights.config_gguf import ARCHITECTURE, metadata_from_text_config
from gemworks.weights.gguf import ALIGNMENT
from gemworks.weights.gguf_blocks import CHUNK_ELEMENTS, LARGEST, TYPES, BlockType, quantize
from gemworks.weights.gguf_file import DEFAULT_ALIGNMENT, MAGIC, NUMBER_DTYPES, ValueType
from gemworks.weights.names import gguf_from_ours, is_norm
from gemworks.weights.quantized import QuantSource, gguf_bytes

VERSION = 3

# What llama.cpp calls the file as a whole (general.file_type): the type of most of its tensors.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}

# The formats that are GGUF's own blocks.
FORMAT_KINDS = {"int4-b32": "Q4_0", "int8-b32": "Q8_0"}

# Types of pieces (tokenizer.ggml.token_type): those that stand for text, and the one of a row without a piece.
_TEXT_TYPES = (1, 6)  # normal, byte
_UNUSED = 5

_PADDING = "gemworks.padding"

# Our names of the tensors that `pure` is about.
_EMBEDDINGS = ("embed.weight", "head.weight")

Value = tuple[ValueType, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor of the file to come: where it is from, what it will be, and its offset in the data."""

    entry: TensorEntry
    kind: BlockType
    offset: int
    num_bytes: int


def write_gguf(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    out: Path,
    outtype: str,
    *,
    chat_template: str | None = None,
    pure: bool = False,
    quantized: Mapping[str, QuantSource] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `checkpoint` to `out` as f32, f16, bf16, q8_0 or q4_0; `out` appears whole or not at all.

    `vocabulary` is written as given (Tokenizer.to_vocabulary has llama.cpp's form), fitted to the rows of the embedding
    by `fit_vocabulary`; None writes a file without a tokenizer. `chat_template` replaces the checkpoint's own.
    `quantized` has the matrices (our names) that are written as given, in formats of FORMAT_KINDS; the outtype is for
    the others.
    `progress(bytes_done, bytes_total)` is called after every tensor.

    Raises ConfigError for an unknown outtype, an existing `out` without `force`, or a config that GGUF cannot say;
    CheckpointError for weights that the outtype cannot hold; StorageError if the disk is full or may not be written.
    """
    if outtype not in FILE_TYPES:
        raise ConfigError(f"outtype must be one of {', '.join(FILE_TYPES)}, got {outtype!r}.")
    if vocabulary is not None:
        vocabulary = fit_vocabulary(vocabulary, checkpoint.config.vocab_size)
    quantized = quantized or {}
    planned = _plan(checkpoint, outtype, quantized, pure=pure)
    metadata = _general_metadata(out, _file_type(planned) if quantized else FILE_TYPES[outtype], checkpoint.generation)
    metadata |= metadata_from_text_config(checkpoint.config)
    metadata |= _tokenizer_metadata(
        vocabulary,
        checkpoint.generation,
        checkpoint.config.vocab_size,
        chat_template or checkpoint.chat_template,
    )
    header = _header(metadata, planned)
    data_bytes = planned[-1].offset + _padded(planned[-1].num_bytes)
    with replacing(out, needed=len(header) + data_bytes, force=force) as partial, partial.open("wb") as file:
        file.write(header)
        for tensor in planned:
            for piece in _pieces(checkpoint, tensor, quantized.get(tensor.entry.name)):
                file.write(piece)
            file.write(bytes(_padded(tensor.num_bytes) - tensor.num_bytes))
            checkpoint.release(tensor.entry.name)
            if progress:
                progress(tensor.offset + _padded(tensor.num_bytes), data_bytes)


def fit_vocabulary(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """The vocabulary with exactly one piece per row of the embedding, as GGUF wants it.

    Rows without a piece (262,144 to 262,207 of 4B and larger) become unused pieces [PAD...]. Pieces without a row are
    dropped if no text can produce them (<image_soft_token> beside a text-only model); else the vocabulary belongs to
    another model: CheckpointError.
    """
    pieces, scores, types = vocabulary
    assert len(pieces) == len(scores) == len(types), "a vocabulary has as many scores and types as pieces"
    if any(kind in _TEXT_TYPES for kind in types[rows:]):
        raise CheckpointError(
            f"the tokenizer has {len(pieces):,} pieces, and the model has {rows:,} embedding rows.\n"
            "They are of different models: take both from the same release."
        )
    padding = range(len(pieces), rows)
    return Vocabulary(
        [*pieces[:rows], *(f"[PAD{row}]" for row in padding)],
        [*scores[:rows], *(-10_000.0 for _ in padding)],
        [*types[:rows], *(_UNUSED for _ in padding)],
    )


def _file_type(planned: Sequence[_Planned]) -> int:
    """FILE_TYPES of what most weights of the layers' matrices are stored as."""
    weights: dict[str, int] = {}
    for tensor in planned:
        if tensor.entry.name not in _EMBEDDINGS and not is_norm(tensor.entry.name):
            kind = tensor.kind.name.lower()
            weights[kind] = weights.get(kind, 0) + prod(tensor.entry.shape)
    return FILE_TYPES[max(weights, key=lambda kind: weights[kind])]


def _general_metadata(out: Path, file_type: int, generation: GenerationDefaults) -> dict[str, Value]:
    return {
        "general.architecture": (ValueType.STRING, ARCHITECTURE),
        "general.type": (ValueType.STRING, "model"),
        "general.name": (ValueType.STRING, out.stem),
        "general.file_type": (ValueType.UINT32, file_type),
        "general.quantization_version": (ValueType.UINT32, 2),
        "general.sampling.temp": (ValueType.FLOAT32, generation.temperature),
        "general.sampling.top_k": (ValueType.INT32, generation.top_k),
        "general.sampling.top_p": (ValueType.FLOAT32, generation.top_p),
    }


def _tokenizer_metadata(
    vocabulary: Vocabulary | None, generation: GenerationDefaults, rows: int, chat_template: str | None
) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    if vocabulary is None:
        keys["tokenizer.ggml.model"] = (ValueType.STRING, "none")
        keys[f"{ARCHITECTURE}.vocab_size"] = (ValueType.UINT32, rows)  # what llama.cpp then goes by
    else:
        keys |= _vocabulary_metadata(vocabulary)
    eos_ids = generation.eos_ids
    keys |= {
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, generation.bos_id),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, eos_ids[0]),
        "tokenizer.ggml.padding_token_id": (ValueType.UINT32, generation.pad_id),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
        "tokenizer.ggml.add_eos_token": (ValueType.BOOL, False),
        "tokenizer.ggml.add_space_prefix": (ValueType.BOOL, False),
    }
    if len(eos_ids) > 1:
        keys["tokenizer.ggml.eot_token_id"] = (ValueType.UINT32, eos_ids[1])
    if len(eos_ids) > 2:
        keys["tokenizer.ggml.eos_token_ids"] = (ValueType.ARRAY, np.array(eos_ids, np.int32))
    if chat_template:
        keys["tokenizer.chat_template"] = (ValueType.STRING, chat_template)
    return keys


def _vocabulary_metadata(vocabulary: Vocabulary) -> dict[str, Value]:
    pieces, scores, types = vocabulary
    texts = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": (ValueType.STRING, "llama"),
        "tokenizer.ggml.pre": (ValueType.STRING, "default"),
        "tokenizer.ggml.tokens": (ValueType.ARRAY, texts),
        "tokenizer.ggml.scores": (ValueType.ARRAY, np.array(scores, np.float32)),
        "tokenizer.ggml.token_type": (ValueType.ARRAY, np.array(types, np.int32)),
    }
    if b"<unk>" in texts:
        keys["tokenizer.ggml.unknown_token_id"] = (ValueType.UINT32, texts.index(b"<unk>"))
    return keys


def _plan(checkpoint: Checkpoint, outtype: str, quantized: Mapping[str, QuantSource], *, pure: bool) -> list[_Planned]:
    planned, offset = [], 0
    for name, entry in checkpoint.entries.items():
        if name in quantized:
            kind = TYPES[FORMAT_KINDS[quantized[name].format]]
        else:
            kind = _kind(name, entry.shape[-1], outtype, pure=pure)
        num_bytes = kind.row_bytes(entry.shape[-1]) * prod(entry.shape[:-1])
        planned.append(_Planned(entry, kind, offset, num_bytes))
        offset += _padded(num_bytes)
    return planned


def _kind(name: str, columns: int, outtype: str, *, pure: bool) -> BlockType:
    if is_norm(name):
        return TYPES["F32"]
    kind = TYPES["Q8_0" if outtype == "q4_0" and name in _EMBEDDINGS and not pure else outtype.upper()]
    return kind if columns % kind.elements == 0 else TYPES["F16"]


def _pieces(checkpoint: Checkpoint, tensor: _Planned, source: QuantSource | None) -> Iterator[memoryview]:
    """The bytes of one tensor as they will be stored, a few MiB at a time."""
    entry, kind = tensor.entry, tensor.kind
    if source is not None:
        yield from gguf_bytes(source.produce())
        return
    norms_agree = checkpoint.format == "gguf" or not is_norm(entry.name)
    if entry.dtype == kind.name and norms_agree:
        yield checkpoint.raw(entry.name)
        return
    if FORMAT_KINDS.get(checkpoint.quantized_format(entry.name) or "") == kind.name:
        weight = checkpoint.read_quantized(entry.name)
        assert weight is not None
        yield from gguf_bytes(weight)
        return
    values = checkpoint.read(entry.name)
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step].astype(np.float32)
        if is_norm(entry.name):
            chunk += np.float32(1)
        _check_range(checkpoint, tensor, chunk)
        yield quantize(chunk, kind.name).data


def _check_range(checkpoint: Checkpoint, tensor: _Planned, chunk: np.ndarray) -> None:
    largest = LARGEST.get(tensor.kind.name)
    if largest is None:
        return
    found = np.abs(chunk).max()
    if not found <= largest:  # also true of NaN
        raise CheckpointError(
            f"{checkpoint.path}: {tensor.entry.published} must be at most {largest:,.0f} to be stored as "
            f"{tensor.kind.name}, and it holds {found}.\nThe weights are damaged; only f32 and bf16 could hold them."
        )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _header(metadata: Mapping[str, Value], planned: Sequence[_Planned]) -> bytes:
    """Everything before the data, a multiple of ALIGNMENT bytes."""
    start = MAGIC + struct.pack("<IQQ", VERSION, len(planned), len(metadata) + 1)
    keys = b"".join(_key(key, value) for key, value in metadata.items())
    table = b"".join(_table_row(tensor) for tensor in planned)
    without_padding = len(start) + len(keys) + len(table) + len(_key(_PADDING, (ValueType.STRING, "")))
    padding = _key(_PADDING, (ValueType.STRING, " " * (-without_padding % ALIGNMENT)))
    return start + keys + padding + table


def _table_row(tensor: _Planned) -> bytes:
    shape = tensor.entry.shape
    name = _string(gguf_from_ours(tensor.entry.name).encode())
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return name + dimensions + struct.pack("<IQ", tensor.kind.code, tensor.offset)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _key(key: str, value: Value) -> bytes:
    return _string(key.encode()) + struct.pack("<I", value[0]) + _encoded(value)


def _encoded(typed: Value) -> bytes:
    kind, value = typed
    if kind is ValueType.STRING:
        return _string(value.encode())
    if kind is not ValueType.ARRAY:
        return np.array(value, NUMBER_DTYPES[kind]).tobytes()
    if isinstance(value, np.ndarray):
        return struct.pack("<IQ", _type_of(value), len(value)) + value.tobytes()
    return struct.pack("<IQ", ValueType.STRING, len(value)) + b"".join(map(_string, value))


def _type_of(array: np.ndarray) -> ValueType:
    if array.dtype == bool:
        return ValueType.BOOL
    return next(kind for kind, dtype in NUMBER_DTYPES.items() if dtype == array.dtype)
