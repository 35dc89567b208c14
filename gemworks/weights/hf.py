"""A Hugging Face directory as a Checkpoint: config.json, one .safetensors file or shards, and what lies beside.

    model/  config.json  model.safetensors                                     or
            config.json  model.safetensors.index.json  model-0000i-of-0000n.safetensors
            generation_config.json  tokenizer_config.json  chat_template.jinja     optional

Matrices may be quantized, as `gemworks quantize` writes them: quantized.py.

The index must list exactly what the shards hold. A directory with both forms is refused: nobody can say which is meant.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemworks.errors import CheckpointError, StorageError
from gemworks.weights.checkpoint import Checkpoint, StoredTensor, Vocabulary, is_chat_model
from gemworks.weights.config_json import eos_ids_from_json, read_json, text_config_from_json
from gemworks.weights.generation_json import generation_defaults_from_json
from gemworks.weights.names import Layout, hf_from_ours, ours_from_hf
from gemworks.weights.quantized import SCALE_SUFFIX, formats_from_json, join_pairs
from gemworks.weights.safetensors import NUMPY_DTYPES, SafetensorsFile
from gemworks.weights.strict import Vocabularies, match_tensors

if TYPE_CHECKING:
    from gemworks.ops.weight import Format, QuantWeight

_INDEX_SUFFIX = ".safetensors.index.json"
_SHOWN = 10

# Bytes compared in one go when a stored head is checked against the embedding.
_COMPARE_BYTES = 1 << 24


def open_hf(path: Path) -> SafetensorsCheckpoint:
    """Open a directory, a .safetensors file or an index. Raises as open_checkpoint does."""
    return SafetensorsCheckpoint(path)


class SafetensorsCheckpoint(Checkpoint):
    """An open Hugging Face checkpoint; see Checkpoint."""

    format = "safetensors"

    def __init__(self, path: Path):
        """Map and check the checkpoint at `path`. Raises as open_checkpoint does."""
        weights = find_weights(path)
        directory = weights.directory
        self.path = path
        if not (directory / "config.json").is_file():
            hint = "Fetch the model's config.json into the same directory."
            if (directory / "adapter_config.json").is_file():
                hint = "This is a LoRA adapter: merge it into its base model, or load that."
            raise CheckpointError(f"{directory} must hold config.json beside the weights, and it does not.\n{hint}")
        config = read_json(directory / "config.json")
        self.config = text_config_from_json(config, str(directory / "config.json"))
        self._formats = formats_from_json(config, directory / "config.json")
        generation = directory / "generation_config.json"
        stated = read_json(generation) if generation.is_file() else None
        self.generation = generation_defaults_from_json(stated, str(generation), config=config)
        self.chat_template = find_chat_template(directory)
        named = eos_ids_from_json(stated or {}) or eos_ids_from_json(config)
        self.is_chat = is_chat_model(named, self.chat_template)
        self._files: dict[Path, SafetensorsFile] = {}
        try:
            for file in weights.files:
                self._files[file] = SafetensorsFile(file)
            if weights.index is not None:
                _check_index(weights, self._files)
            self.entries = self._match()
        except BaseException:
            self.close()
            raise

    def _match(self):
        stored = [
            StoredTensor(
                published=name,
                shape=span.shape,
                dtype=span.dtype,
                num_bytes=span.end - span.begin,
                file=file,
            )
            for file, opened in self._files.items()
            for name, span in opened.tensors.items()
        ]
        self._scale_files = {tensor.published: tensor.file for tensor in stored if tensor.published in self._scales()}
        stored = join_pairs(stored, self._formats, self.path)
        layout = _layout_of(stored)
        names = Vocabularies(
            ours=ours_from_hf,
            published=lambda ours: hf_from_ours(ours, layout),
            dtypes=(*NUMPY_DTYPES, *dict.fromkeys(self._formats.values())),
        )
        subject = f"{self.path} ({len(self._files)} file{'s' if len(self._files) > 1 else ''})"
        return match_tensors(subject, stored, self.config, names, same_bits=self._same_bits)

    def _scales(self) -> set[str]:
        return {name + SCALE_SUFFIX for name in self._formats}

    def _same_bits(self, one: StoredTensor, other: StoredTensor) -> bool:
        first, second = (np.frombuffer(self._files[t.file].raw(t.published), np.uint8) for t in (one, other))
        step = _COMPARE_BYTES
        # A pair is never the same: its scales are not looked at here, and `gemworks quantize` writes no tied head.
        same = one.dtype == other.dtype in NUMPY_DTYPES and all(
            np.array_equal(first[at : at + step], second[at : at + step]) for at in range(0, first.size, step)
        )
        del first, second
        for tensor in (one, other):
            self._files[tensor.file].release(tensor.published)
        return same

    def read(self, name: str) -> np.ndarray:
        """See Checkpoint.read. Quantized matrices come dequantized."""
        weight = self.read_quantized(name)
        if weight is not None:
            from gemworks.quant.formats import dequantize

            return dequantize(weight)
        entry = self.entries[name]
        return self._files[entry.file].array(entry.published)

    def quantized_format(self, name: str) -> Format | None:
        """See Checkpoint.quantized_format."""
        return self._formats.get(self.entries[name].published)

    def read_quantized(self, name: str) -> QuantWeight | None:
        """See Checkpoint.read_quantized."""
        if (format := self.quantized_format(name)) is None:
            return None
        from gemworks.ops.weight import QuantWeight

        entry = self.entries[name]
        scales = entry.published + SCALE_SUFFIX
        F, D = entry.shape
        return QuantWeight(
            self._files[entry.file].array(entry.published),
            self._files[self._scale_files[scales]].array(scales),
            format,
            (F, D),
        )

    def raw(self, name: str) -> memoryview:
        """See Checkpoint.raw."""
        entry = self.entries[name]
        return self._files[entry.file].raw(entry.published)

    def release(self, name: str) -> None:
        """See Checkpoint.release."""
        entry = self.entries[name]
        self._files[entry.file].release(entry.published)
        scales = entry.published + SCALE_SUFFIX
        if scales in self._scale_files:
            self._files[self._scale_files[scales]].release(scales)

    def vocabulary(self) -> Vocabulary | None:
        """None: the vocabulary lies beside the weights."""
        return None

    def close(self) -> None:
        """See Checkpoint.close."""
        for file in self._files.values():
            file.close()


class _Weights(NamedTuple):
    directory: Path
    files: list[Path]
    index: dict[str, str] | None  # tensor -> file name
    index_path: Path | None


def find_weights(path: Path) -> _Weights:
    """The files that `path` means. A shard means the model it is part of."""
    if path.is_dir():
        indexes = sorted(path.glob("*" + _INDEX_SUFFIX))
        singles = sorted(file for file in path.glob("*.safetensors"))
        if len(indexes) == 1:
            weights = _read_index(indexes[0])
            strays = [file.name for file in singles if file.name == indexes[0].name.removesuffix(".index.json")]
            if strays and strays[0] not in {file.name for file in weights.files}:
                raise CheckpointError(
                    f"{path} must hold one model, and it holds {strays[0]} and {indexes[0].name} without it.\n"
                    "Name the one to load, or remove the other."
                )
            return weights
        preferred = [file for file in singles if file.name == "model.safetensors"] or singles
        if len(preferred) == 1 and not indexes:
            return _Weights(path, preferred, None, None)
        names = ", ".join(file.name for file in (indexes or singles)[:_SHOWN])
        raise CheckpointError(
            f"{path} must hold model.safetensors or one index of shards, and it holds {names}.\n"
            "Name the file to load; if these are shards, fetch model.safetensors.index.json too."
        )
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_index(path)
    for index in sorted(path.parent.glob("*" + _INDEX_SUFFIX)):
        weights = _read_index(index)
        if path in weights.files:
            return weights
    return _Weights(path.parent, [path], None, None)


def _read_index(path: Path) -> _Weights:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} must hold a weight_map, and it does not.\nFetch the index again.")
    for tensor, name in weight_map.items():
        # A file beside the index and nothing else: an index from elsewhere must not reach other places.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} must map tensors to .safetensors files beside it, and it maps {tensor} to {name!r}.\n"
                "Fetch the index again."
            )
    files = [path.parent / name for name in sorted(set(weight_map.values()))]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        raise StorageError(
            f"{path.parent} must hold the {len(files)} shards of {path.name}, and {len(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing: {shown}.\nFetch the missing files; the others can stay."
        )
    return _Weights(path.parent, files, weight_map, path)


def _check_index(weights: _Weights, files: dict[Path, SafetensorsFile]) -> None:
    """Refuse an index that lists something else than its shards hold."""
    assert weights.index is not None and weights.index_path is not None
    listed = {(name, file) for name, file in weights.index.items()}
    held = {(name, path.name) for path, file in files.items() for name in file.tensors}
    lines = [f"  listed but not there  {name}  in {file}" for name, file in sorted(listed - held)]
    lines += [f"  there but not listed  {name}  in {file}" for name, file in sorted(held - listed)]
    if not lines:
        return
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    raise CheckpointError(
        "\n".join(
            [
                f"{weights.index_path} must list what its {len(files)} shards hold, and {len(lines)} "
                f"{'entry differs' if len(lines) == 1 else 'entries differ'}.",
                *lines[:_SHOWN],
                *more,
                "Shards of different saves were mixed: fetch the index and the shards again.",
            ]
        )
    )


def _layout_of(stored: list[StoredTensor]) -> Layout:
    """The layout most names have, so that messages name missing tensors as this file would."""
    votes: Counter[Layout] = Counter()
    prefixes: dict[str, Layout] = {"language_model.": "A", "model.language_model.": "B", "model.layers.": "C"}
    for tensor in stored:
        for prefix, layout in prefixes.items():
            if tensor.published.startswith(prefix):
                votes[layout] += 1
    return votes.most_common(1)[0][0] if votes else "C"


def find_chat_template(directory: Path) -> str | None:
    """The jinja source of the chat template in a directory, from any of the three places, or None."""
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        try:
            return plain.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{plain} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{plain} must be UTF-8 text, and it is not.\nFetch it again.") from error
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (directory / name).is_file() and (found := _template_in(read_json(directory / name))):
            return found
    return None


def _template_in(data: dict[str, Any]) -> str | None:
    """chat_template of a JSON file: a text, or a list of named ones of which "default" counts."""
    template = data.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
