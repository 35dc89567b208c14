"""Text to token ids and back, from tokenizer.json, tokenizer.model or a GGUF vocabulary, on one engine.

The engine is Hugging Face's `tokenizers` (Rust) for all three sources. For the latter two the merges are derived from
the scores, so ids agree by construction. Official vocabulary (262,144 pieces), two shared cores of an EPYC, 2026-11:

    tokenizer.json     1.1 s   (0.9 the Rust parser on 33 MB, names 0.1; Python never parses the file)
    GGUF vocabulary    1.5 s   (checks 0.1, merges 0.7, engine 0.45, names 0.1)
    tokenizer.model    1.9 s   (the same after 0.3 for the protobuf)

The sentencepiece library loads a tokenizer.model in 0.1 s, but it gives other ids where text holds U+2581, takes
`<start_of_turn>` in text for the control token always, and would be a second splitter to keep equal to the first.

A start that finds the vocabulary in the cache (weights/tokenizer_cache.py) maps it as a table instead (table.py), in
20 ms, and loads the engine only for long texts. Neither is changed after construction, so a Tokenizer may be used from
many threads.

Not here: which ids start a prompt (chat.py). Not possible: U+2581 in text comes back as a space.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemworks.errors import CheckpointError, RequestError, StorageError
from gemworks.memory import give_back_freed_memory
from gemworks.tokenizer.chat import TEMPLATE
from gemworks.tokenizer.spm import read_spm
from gemworks.tokenizer.stream import StreamDecoder
from gemworks.tokenizer.table import VocabularyTable, table_arrays
from gemworks.tokenizer.vocabulary import CONTROL_NAMES, SPACE, PieceType, Vocabulary, byte_piece, scores_of

if TYPE_CHECKING:  # 20 ms to import, and a start that finds a table in the cache needs none of it
    import tokenizers

    from gemworks.tokenizer.engine import Engines

FILE_NAMES = ("tokenizer.json", "tokenizer.model")  # the first one found is taken: it loads faster
_NUM_PROBES = 64

# Characters that a table splits before the engine is loaded: 3 us each against 0.35 and 1.05 s once, so that neither
# choice ever costs more than twice the better one.
_TABLE_CHARACTERS = 400_000

_MAX_PADDING_ROWS = 1024  # embeddings are padded by 63 rows at most in the released models


class Tokenizer:
    """Text <-> ids of one vocabulary. Made by `load` or `from_vocabulary`; ids are looked up by name, never assumed."""

    def __init__(self, engine: "tokenizers.Tokenizer", where: str):
        """Take over `engine`; `where` names its file in errors. CheckpointError unless it works as Gemma's does."""
        from gemworks.tokenizer.engine import make_engines

        made = make_engines(engine, where)
        self._made: Engines | None = made
        self._table: VocabularyTable | None = None
        self._load: Callable[[], Tokenizer] | None = None  # what has a table gets its engines from
        self._split = 0  # characters that the table has split
        self._describe(made.names, made.controls, made.matched, engine.token_to_id, where)
        self._require_whole()
        give_back_freed_memory()

    @classmethod
    def from_table(cls, table: VocabularyTable, load: "Callable[[], Tokenizer]", where: str) -> "Tokenizer":
        """Return a tokenizer that splits with `table`, and with the engine of `load()` once that pays."""
        made = cls.__new__(cls)
        made._made, made._table, made._load, made._split = None, table, load, 0
        made._describe(table.names, table.controls, table.matched, table.id_of, where)
        return made

    def _describe(
        self,
        names: Sequence[str],
        controls: frozenset[int],
        matched: frozenset[int],
        id_of: Callable[[str], int | None],
        where: str,
    ) -> None:
        self._where = where
        self._names = names
        self._id_of = id_of
        self.size = len(names)
        self.control_ids: frozenset[int] = controls
        self._matched_ids = matched
        self._byte_ids = {id_of(byte_piece(value)): value for value in range(256)}
        self._bytes: dict[int, bytes] = {}
        self.bos_id = self._required_id("<bos>")
        self.eos_id = self._required_id("<eos>")
        self.pad_id = self.id_of("<pad>")
        self.unk_id = self.id_of("<unk>")
        self.start_of_turn_id = self.id_of("<start_of_turn>")
        self.end_of_turn_id = self.id_of("<end_of_turn>")

    @property
    def _engines(self) -> "Engines":
        """The engines, loaded now where a table stood in for them."""
        if self._made is None:
            assert self._load is not None
            self._made = self._load()._engines
        return self._made

    def to_table(self) -> dict[str, np.ndarray] | None:
        """Return the arrays of a VocabularyTable that splits as this does, or None where none can. Takes 2 s."""
        engines = self._engines
        if not engines.has_plain_matches:
            return None
        merges = json.loads(engines.whole.to_str())["model"]["merges"]
        return table_arrays(list(self._names), [(a, b) for a, b in merges], self.control_ids, self._matched_ids)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Load a tokenizer.json or tokenizer.model, or the one in a directory.

        Raises CheckpointError when the file is not a Gemma tokenizer, StorageError when it cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in FILE_NAMES if (path / name).is_file()]
            if not found:
                raise CheckpointError(f"{path}: a model directory must hold {' or '.join(FILE_NAMES)}, got neither.")
            path = found[0]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path}: the tokenizer must be readable, got {error.strerror}.") from error
        from gemworks.tokenizer.engine import engine_from_json

        where = str(path)
        if path.suffix == ".model":
            return cls.from_vocabulary(*read_spm(data, where), where=where)
        return cls(engine_from_json(data, where), where)

    @classmethod
    def from_vocabulary(
        cls,
        pieces: Sequence[str | bytes],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        where: str = "the vocabulary",
    ) -> "Tokenizer":
        """Build from equally long lists as in GGUF (`tokenizer.ggml.tokens`, `scores`, `token_type`).

        `where` names the source in errors (CheckpointError). Unused pieces at the end are dropped.
        """
        from gemworks.tokenizer.engine import engine_from_vocabulary

        return cls(engine_from_vocabulary(Vocabulary.checked(pieces, scores, types, where)), where)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Return the ids of `text`, without `<bos>`.

        control=False takes `<end_of_turn>` and its like in the text as the characters they are; control=True as the
        control tokens, as transformers does. Raises RequestError for lone surrogates, which are not text.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text must be Unicode, got the lone surrogate U+{ord(text[error.start]):04X} "
                f"at character {error.start}."
            ) from None
        if self._made is None and self._table is not None and not control:
            self._split += len(text)
            if self._split <= _TABLE_CHARACTERS:
                return self._table.encode(text)
        engines = self._engines
        ids = (engines.whole if control else engines.text).encode(text, add_special_tokens=False).ids
        if engines.moved and not control:
            return [engines.moved.get(i, i) for i in ids]
        return ids

    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """Return the text of `ids`, exactly: no space is stripped; bytes that are not UTF-8 become U+FFFD.

        Control tokens are left out, or written by name with skip_control=False. RequestError for an id outside the
        vocabulary.
        """
        skipped = self.control_ids if skip_control else frozenset()
        return b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", "replace")

    def stream(self, *, skip_control: bool = True) -> StreamDecoder:
        """Return a decoder to push ids into one at a time; it adds up to `decode`."""
        return StreamDecoder(self, skip_control=skip_control)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that this token adds to a text, possibly a part of a character."""
        known = self._bytes.get(token_id)
        if known is None:
            if token_id in self._byte_ids:
                known = bytes([self._byte_ids[token_id]])
            else:
                known = self._name(token_id).replace(SPACE, " ").encode("utf-8")
            self._bytes[token_id] = known
        return known

    def piece(self, token_id: int) -> str:
        """Return the token as people are shown it: its text, or `<0xE2>` for a byte and `<eos>` for a control token."""
        return self._name(token_id).replace(SPACE, " ")

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece by its name in the vocabulary (spaces are U+2581), None where it is not there."""
        return self._id_of(piece)

    def require_rows(self, num_rows: int, where: str) -> None:
        """Raise CheckpointError unless an embedding of `num_rows` fits this vocabulary; `where` names the model.

        Control tokens may lie outside (the text-only models have no row for `<image_soft_token>`); up to 1,023 rows
        of padding may follow.
        """
        last = next(i for i in range(self.size - 1, -1, -1) if i not in self.control_ids or i < num_rows)
        if last >= num_rows or num_rows >= self.size + _MAX_PADDING_ROWS:
            raise CheckpointError(
                f"{where}: the embedding must have a row for each of the tokenizer's {self.size} pieces, "
                f"got {num_rows} rows.\n{self._where} is likely the tokenizer of another model."
            )

    def to_vocabulary(self, num_rows: int | None = None) -> tuple[list[str], list[float], list[int]]:
        """Return (pieces, scores, types) as llama.cpp's converter writes them to GGUF.

        `num_rows`, the rows of the embedding, pads with unused pieces or drops control tokens at the end. One
        difference to the converter: `[multimodal]` is a control token, not user-defined, so it cannot be typed.
        Takes seconds: the merges are read back from the engine. Raises CheckpointError where they cannot be written
        as scores (see `scores_of`).
        """
        model = json.loads(self._engines.whole.to_str())["model"]
        pieces = list(self._names)
        types = [self._type(i) for i in range(self.size)]
        scores = scores_of(pieces, types, [(a, b) for a, b in model["merges"]], self._where)
        for i in self._matched_ids:
            pieces[i] = pieces[i].replace(SPACE, " ")
        if num_rows is not None:
            self.require_rows(num_rows, self._where)
            padding = range(self.size, num_rows)
            pieces = pieces[:num_rows] + [f"[PAD{i}]" for i in padding]
            scores = scores[:num_rows] + [-10000.0 for _ in padding]
            types = types[:num_rows] + [PieceType.UNUSED for _ in padding]
        return pieces, scores, [int(t) for t in types]

    def save(self, directory: str | Path, *, chat_template: str | None = TEMPLATE) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads, into `directory`.

        `chat_template` goes into the config; None for models that do not chat. The caller makes the directory, and
        makes the whole of it appear at once. Raises StorageError.
        """
        directory = Path(directory)
        config = json.dumps(self._config(chat_template), ensure_ascii=False, indent=2)
        try:
            (directory / "tokenizer.json").write_text(self._engines.whole.to_str(), encoding="utf-8")
            (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{directory}: the tokenizer must be writable, got {error.strerror}.") from error

    def _config(self, chat_template: str | None) -> dict[str, Any]:
        """What tokenizer_config.json says; names that the vocabulary lacks are left out."""
        names = {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        }
        images = {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        }
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = self._engines.whole.get_added_tokens_decoder()
        config: dict[str, Any] = {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {str(i): {f: getattr(added[i], f) for f in flags} for i in sorted(added)},
            **{key: name for key, name in names.items() if self.id_of(name) is not None},
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "spaces_between_special_tokens": False,
            "tokenizer_class": "GemmaTokenizer",
        }
        if all(self.id_of(name) is not None for name in images.values()):
            config |= images | {"extra_special_tokens": images}
        if chat_template is not None:
            config["chat_template"] = chat_template
        return config

    def _type(self, token_id: int) -> PieceType:
        if token_id in self.control_ids:
            return PieceType.CONTROL
        if token_id in self._byte_ids:
            return PieceType.BYTE
        return PieceType.USER_DEFINED if token_id in self._matched_ids else PieceType.NORMAL

    def _name(self, token_id: int) -> str:
        if not 0 <= token_id < self.size:
            raise RequestError(f"a token id must be between 0 and {self.size - 1}, got {token_id}.")
        return self._names[token_id]

    def _required_id(self, name: str) -> int:
        token_id = self.id_of(name)
        if token_id is None:
            raise CheckpointError(
                f"{self._where}: a Gemma vocabulary must have {name}, got {self.size} pieces without it.\n"
                "The file is likely the tokenizer of another model."
            )
        return token_id

    def _require_whole(self) -> None:
        """Raise CheckpointError for missing merges, and for merges that make control tokens of text."""
        for name in sorted(CONTROL_NAMES):
            if self.id_of(name) is not None and self.id_of(name) in self.encode(name):
                raise CheckpointError(
                    f"{self._where}: text must never become a control token, got merges that make {name}."
                )
        if probes := self._probes():
            if any(self.encode(text) == [i] for i, text in probes):
                return
            raise CheckpointError(
                f"{self._where}: merges must make the vocabulary's pieces, "
                f"got none of {len(probes)} tried, such as {probes[-1][1]!r}.\n"
                "The merges are missing or belong to another vocabulary."
            )

    def _probes(self) -> list[tuple[int, str]]:
        """Up to 64 ordinary pieces of two or more characters, from all over the vocabulary, as text."""
        step = max(1, self.size // (4 * _NUM_PROBES))
        own = [i for i in range(0, self.size, step) if self._type(i) is PieceType.NORMAL]
        found = [(i, self.piece(i)) for i in own if len(self._name(i)) > 1]
        return found[:: max(1, len(found) // _NUM_PROBES)]

    @cached_property
    def chat_ids(self) -> tuple[int, int]:
        """(`<start_of_turn>`, `<end_of_turn>`); RequestError where the vocabulary has none."""
        if self.start_of_turn_id is None or self.end_of_turn_id is None:
            raise RequestError(
                f"{self._where}: a chat needs <start_of_turn> and <end_of_turn>, got a vocabulary without them.\n"
                "This model can only continue text: give a raw prompt."
            )
        return self.start_of_turn_id, self.end_of_turn_id
