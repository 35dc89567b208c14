"""A model's tokenizer, mapped from the cache where it was loaded before: 20 ms instead of 1.05 to 1.9 s.

    <cache>/tokenizers/<name>-<16 hex digits>.table     a packed file (packed.py) with the arrays of tokenizer/table.py

As a packed model, a table is used only while its source file is the same and no byte of it is damaged; otherwise it is
made again, and nobody needs to be told. Vocabularies that load quickly anyway have none.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from gemworks import env
from gemworks.errors import GemworksError
from gemworks.memory import give_back_freed_memory
from gemworks.tokenizer.table import ARRAYS, VocabularyTable
from gemworks.tokenizer.tokenizer import FILE_NAMES, Tokenizer
from gemworks.weights.checkpoint import Checkpoint, open_checkpoint
from gemworks.weights.packed import PackedSource, write_packed
from gemworks.weights.packed_header import NotUsable
from gemworks.weights.packed_store import identity, open_current

TABLE_VERSION = 1  # changes with the arrays, and with what they mean

# Vocabularies below this load in less than 0.15 s.
_SMALLEST = 32_768


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return the tokenizer inside the checkpoint's file (GGUF), else the one beside it. Raises as Tokenizer.load."""
    path = checkpoint.path
    if checkpoint.format == "gguf" and (found := _from_table(path, lambda: _inside(path))):
        return found
    if vocabulary := checkpoint.vocabulary():
        return _kept(path, Tokenizer.from_vocabulary(*vocabulary), lambda: _inside(path))
    folder = path if path.is_dir() else path.parent
    beside = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), folder)

    def load() -> Tokenizer:
        return Tokenizer.load(beside)

    return _from_table(beside, load) or _kept(beside, load(), load)


def _inside(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        vocabulary = checkpoint.vocabulary()
    assert vocabulary is not None, path
    return Tokenizer.from_vocabulary(*vocabulary)


def _from_table(source: Path, load: Callable[[], Tokenizer]) -> Tokenizer | None:
    """The tokenizer of the file `source` from the cache; `load` makes it without. None: the cache has none of it."""
    try:
        file = open_current(_path(source), identity(source, [source]), "", TABLE_VERSION)
    except (NotUsable, OSError):  # what is wrong with the source is told when it is loaded
        return None
    if file.tensors.keys() != ARRAYS.keys() or file.damage() is not None:
        return None
    return Tokenizer.from_table(VocabularyTable({name: file.array(name) for name in ARRAYS}), load, str(source))


def _kept(source: Path, tokenizer: Tokenizer, load: Callable[[], Tokenizer]) -> Tokenizer:
    """`tokenizer` after it was put into the cache for the next start, as that start will get it.

    A table of 262,144 pieces is mapped from its file, where the parsed tokenizer takes 129 MB of the process's own.
    """
    arrays = tokenizer.to_table() if tokenizer.size >= _SMALLEST else None
    if arrays is None:
        return tokenizer
    sources = [
        PackedSource(name=name, kind=own.dtype.name, shape=own.shape, size=own.nbytes, produce=lambda own=own: own)
        for name, own in arrays.items()
    ]
    with contextlib.suppress(GemworksError, OSError):  # the next start takes as long as this one
        write_packed(_path(source), sources, layout=TABLE_VERSION, source=identity(source, [source]), plan="")
    del arrays, sources
    if (mapped := _from_table(source, load)) is not None:
        tokenizer = mapped
    give_back_freed_memory()
    return tokenizer


def _path(source: Path) -> Path:
    digest = hashlib.blake2b(str(source.resolve()).encode(), digest_size=8).hexdigest()
    return env.cache() / "tokenizers" / f"{source.parent.name}-{digest}.table"
