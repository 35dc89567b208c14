"""A teacher's draws on disk, for teachers that do not fit beside their student: written once, read by many runs.

    STORE/header.json    teacher and packing (digests), scheme, draws, temperature, seed, words, row length
    STORE/index.bin      uint64: where each row's record ends in draws.bin; row n of the run is record n
    STORE/draws.bin      records one after another

    record   8 bytes    first bytes of sha256 of the row's token ids (int32, little endian)
             T x u16    distinct words drawn for each token, k; 0 where the token is no target
             K x id     the words, ascending in each token: u16, or 3 bytes where there are more than 65,536 words
             K x f16    the teacher's ln p of each
             K x u8     how often it was drawn, less one (scheme counts only)

5 or 6 bytes a word: 0.3 KB a token at 56 distinct words (spec: 1B tokens are 0.3 TB), so a teacher that computes beside
the student is the default. A row of other ids than the record's is refused: the store belongs to one packing.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.model.gemma3 import Gemma3
from gemworks.ops.train.product import linear
from gemworks.train.distill import Distill, TaughtRows
from gemworks.train.forward import Rows, head_rows, hidden
from gemworks.train.targets import draw, targets_of
from gemworks.weights.atomic import replacing, storage_error

FORMAT = "gemworks-teacher-draws-1"
_HASH_BYTES = 8


def write_store(
    path: Path,
    source: Any,
    teacher: Gemma3,
    settings: Distill,
    *,
    steps: int,
    seed: int,
    teacher_digest: str,
    progress: Callable[[int], None] = lambda step: None,
) -> None:
    """Write the draws for the rows of the first `steps` batches; continue where a store of the same header ends.

    Raises ConfigError if `path` holds a store of something else, StorageError if the disk is full.
    """
    first = source.batch(0)
    header = {
        "format": FORMAT,
        "teacher": teacher_digest,
        "packing": source.digest,
        "tokenizer": getattr(source, "tokenizer_sha256", ""),
        "scheme": settings.scheme,
        "draws": settings.draws,
        "temperature": settings.temperature,
        "seed": seed,
        "words": teacher.config.vocab_size,
        "tokens": int(first.ids_BT.shape[1]),
    }
    rows_a_step = first.ids_BT.shape[0]
    done = _begin(path, header)

    @jax.jit
    def drawn(teacher: Gemma3, rows: Rows, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        h_BTD, head = hidden(teacher, rows, remat=False), head_rows(teacher)

        def row(one):
            logits = linear(one[0], head) / settings.temperature
            ids = draw(one[1], logits, settings.draws)
            return ids, jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1)

        return jax.lax.map(row, (h_BTD, jax.random.split(key, h_BTD.shape[0])))

    try:
        with (path / "draws.bin").open("ab") as data, (path / "index.bin").open("ab") as index:
            for step in range(done // rows_a_step, steps):
                batch = source.batch(step)
                rows = Rows(*(np.asarray(getattr(batch, name)) for name in Rows._fields))
                said_ids, weights = np.asarray(rows.ids_BT), np.asarray(rows.loss_mask_BT)
                ids, log_p = jax.device_get(drawn(teacher, rows, jax.random.fold_in(jax.random.key(seed), step)))
                for b in range(rows_a_step):
                    if step * rows_a_step + b >= done:
                        data.write(_record(said_ids[b], weights[b] > 0, ids[b], log_p[b], header))
                        data.flush()  # before the index says that it is there
                        index.write(np.uint64(data.tell()).tobytes())
                index.flush()
                progress(step + 1)
    except OSError as error:
        raise storage_error(path, error, 0) from error


class TeacherStore:
    """A store, opened for reading. Raises CheckpointError where the files are not a whole store."""

    def __init__(self, path: Path):
        self.path = path
        self.header = _read_header(path)
        self._ends = np.fromfile(path / "index.bin", np.uint64)
        self._data = np.memmap(path / "draws.bin", np.uint8, "r") if len(self._ends) else np.zeros(0, np.uint8)
        if len(self._ends) and self._ends[-1] > len(self._data):
            raise CheckpointError(f"{path}: draws.bin ends before its last record; write the store again.")

    def __len__(self) -> int:
        return len(self._ends)

    def row(self, number: int, ids_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (drawn_TC, taught_TC) of row `number` of the run, which must have these ids."""
        if number >= len(self):
            raise ConfigError(
                f"{self.path} holds the draws of {len(self):,} rows, and the run wants row {number + 1:,}.\n"
                "Write more of it (the same command continues a store), or train for fewer steps."
            )
        start = int(self._ends[number - 1]) if number else 0
        raw = self._data[start : int(self._ends[number])].tobytes()
        if raw[:_HASH_BYTES] != _hash(ids_T):
            raise ConfigError(
                f"{self.path}: row {number:,} of the run must have the ids that the teacher saw, and has others.\n"
                "The data was packed, mixed or seeded differently: write the store again for this data."
            )
        return self._targets(raw[_HASH_BYTES:])

    def _targets(self, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
        T, C, scheme = self.header["tokens"], self.header["draws"], self.header["scheme"]
        k_T = np.frombuffer(raw, np.uint16, T).astype(np.int64)
        K, wide = int(k_T.sum()), _id_bytes(self.header["words"])
        at = 2 * T
        parts = np.frombuffer(raw, np.uint8, K * wide, at).reshape(K, wide).astype(np.int32)
        ids_K = (parts << (8 * np.arange(wide))).sum(axis=1)
        log_p_K = np.frombuffer(raw[at + K * wide : at + K * (wide + 2)], np.float16).astype(np.float32)
        if scheme == "counts":
            weight_K = np.frombuffer(raw, np.uint8, K, at + K * (wide + 2)).astype(np.float32) + 1
        else:
            weight_K = np.exp(log_p_K)
            if scheme == "ht":
                missed = C * np.log1p(-np.minimum(weight_K, np.float32(1 - 2**-24)))
                weight_K = weight_K / np.maximum(-np.expm1(missed), 1e-30)
        token_K = np.repeat(np.arange(T), k_T)
        place_K = np.arange(K) - np.repeat(np.cumsum(k_T) - k_T, k_T)
        drawn, taught = np.zeros((T, C), np.int32), np.zeros((T, C), np.float32)
        drawn[token_K, place_K], taught[token_K, place_K] = ids_K, weight_K
        return drawn, taught / np.maximum(taught.sum(axis=1, keepdims=True), 1e-30)


class TaughtSource:
    """A source whose batches have a store's draws beside them, for the method FromStore."""

    def __init__(self, source: Any, store: TeacherStore):
        if store.header["packing"] != source.digest:
            raise ConfigError(
                f"{store.path} must be of the data of the run, and its packing is another: "
                f"{store.header['packing'][:12]} and {source.digest[:12]}.\nWrite the store again for this data."
            )
        self.source, self.store = source, store
        self.digest = hashlib.sha256(json.dumps([source.digest, store.header]).encode()).hexdigest()

    def batch(self, step: int, rows: slice | None = None) -> TaughtRows:
        """Return the batch of a step, or these rows of it, with its draws."""
        batch = self.source.batch(step, rows)
        parts = [np.asarray(getattr(batch, name)) for name in Rows._fields]
        first = step * (self.source.batch_rows if rows else len(parts[0])) + (rows.start if rows else 0)
        taught = [self.store.row(first + b, ids_T) for b, ids_T in enumerate(parts[0])]
        parts[2] = parts[2].astype(np.float32)
        return TaughtRows(*parts, *(np.stack(part) for part in zip(*taught, strict=True)))


def _begin(path: Path, header: dict[str, Any]) -> int:
    """Make or check the store's header and cut off what a killed writer left; return how many rows are whole."""
    if (path / "header.json").is_file():
        before = _read_header(path)
        if changed := [f"{k}   {before.get(k)} -> {v}" for k, v in header.items() if before.get(k) != v]:
            raise ConfigError(f"{path} holds the draws of something else:\n  " + "\n  ".join(changed))
    else:
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(header, indent=2) + "\n"
        with replacing(path / "header.json", needed=len(text)) as partial:
            partial.write_text(text, encoding="utf-8")
    for name in ("index.bin", "draws.bin"):
        (path / name).touch()
    size = (path / "draws.bin").stat().st_size
    ends = np.fromfile(path / "index.bin", np.uint64)  # a last entry cut short is left out
    whole = int((ends <= size).sum())
    with (path / "index.bin").open("r+b") as index, (path / "draws.bin").open("r+b") as data:
        index.truncate(8 * whole)
        data.truncate(int(ends[whole - 1]) if whole else 0)
    return whole


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "header.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path} is not a store of teacher's draws: header.json is not there.") from error
    except ValueError as error:
        raise CheckpointError(f"{path / 'header.json'} is not JSON: {error}.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} must be a store of the format {FORMAT}.")
    return header


def _record(ids_T: np.ndarray, wanted_T: np.ndarray, drawn_TC, log_p_TC, header: dict[str, Any]) -> bytes:
    first = np.ones(drawn_TC.shape, bool)
    first[:, 1:] = drawn_TC[:, 1:] != drawn_TC[:, :-1]
    first &= wanted_T[:, None]
    ids_K, wide = drawn_TC[first].astype(np.uint32), _id_bytes(header["words"])
    parts = [
        _hash(ids_T),
        first.sum(axis=1).astype(np.uint16).tobytes(),
        ((ids_K[:, None] >> (8 * np.arange(wide, dtype=np.uint32))) & 255).astype(np.uint8).tobytes(),
        log_p_TC[first].astype(np.float16).tobytes(),
    ]
    if header["scheme"] == "counts":
        counts = np.asarray(targets_of(jnp.asarray(drawn_TC), jnp.asarray(log_p_TC), "counts")) * header["draws"]
        parts.append((np.rint(counts[first]) - 1).astype(np.uint8).tobytes())
    return b"".join(parts)


def _id_bytes(words: int) -> int:
    return 2 if words <= 65_536 else 3


def _hash(ids_T: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(ids_T, "<i4").tobytes()).digest()[:_HASH_BYTES]
