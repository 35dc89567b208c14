"""Batches of packed rows as a pure function of (stores, mixture, seed, step): exact resume, and an audit of any step.

    source = PackedSource.open("packed")            # a packed store, or a mixture file made by `gemworks data mix`
    batch = source.batch(4217)                      # the same whatever came before, and on every host
    part = source.batch(4217, rows=slice(0, 4))     # only these rows: what one host of several needs
    source.describe(4217)                           # which documents they were

Row r of step s is row number n = s * batch_rows + r of the run. The mixture says that it is, say, the 37th row of the
group "de"; a pseudo-random permutation, another one for each epoch, says which stored row that is.

    ids_BT        <bos> a b <bos> c d . .        B rows, T positions
    targets_BT    a b <eos> c d <eos> 0 0        the next token of the same document
    segment_BT    1 1 1 2 2 2 0 0                tokens see their own segment only; 0 is padding
    position_BT   0 1 2 0 1 2 0 0                restarts in every segment
    loss_mask_BT  1 1 1 1 1 1 0 0                where the target counts

There is no loader with state and no worker pool: see docs/data.md for what a batch costs, and `prefetched` for a
thread that keeps a few ready. A PackedSource has what Grain asks of a random-access source (`len`, index).
"""

import hashlib
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.data.mixture import Mixture
from gemworks.data.permutation import key_of, permuted
from gemworks.data.store import PackedStore, StoredRows, tokenizer_digest
from gemworks.data.writing import read_json
from gemworks.errors import ConfigError, StorageError
from gemworks.tokenizer.tokenizer import Tokenizer

MIXTURE_FORMAT = "gemworks-mixture"
_DEFAULT_ROWS = 8


@dataclass(frozen=True)
class Batch:
    """B rows of T positions, numpy. int32, but for the mask, which is bool. The layout is drawn above."""

    ids_BT: np.ndarray
    targets_BT: np.ndarray
    loss_mask_BT: np.ndarray
    segment_BT: np.ndarray
    position_BT: np.ndarray

    @property
    def num_targets(self) -> int:
        """Targets that count."""
        return int(self.loss_mask_BT.sum())


@dataclass(frozen=True)
class _Group:
    """Rows first ... first + count - 1 of a store's table."""

    name: str
    rows: StoredRows
    first: int
    count: int


class PackedSource:
    """An endless source of batches. Made by `open`; has no state, so any thread may ask for any step."""

    def __init__(self, groups: list[_Group], mixture: Mixture, *, batch_rows: int, seed: int):
        self.length = groups[0].rows.length
        self.batch_rows, self.seed, self.mixture = batch_rows, seed, mixture
        self._groups = groups
        self.vocab_size = int(groups[0].rows.store.header["vocab_size"])
        self.tokenizer_sha256 = str(groups[0].rows.store.header["tokenizer_sha256"])
        self.num_rows = sum(group.count for group in groups)
        about = [list(mixture.names), list(mixture.units), self.length, batch_rows, seed, self.tokenizer_sha256]
        about += [[group.name, group.rows.digest, group.first, group.count] for group in groups]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        batch_rows: int | None = None,
        seed: int | None = None,
        length: int | None = None,
    ) -> "PackedSource":
        """Open a packed store, or the mixture file (.json) of several. What is not given is as the file says.

        `length` chooses among the row lengths that the stores are laid out for. Raises StorageError for a damaged
        file, ConfigError for stores that do not go together.
        """
        path = Path(path)
        if path.is_dir():
            store = PackedStore(path)
            wanted = length or _only_length(store)
            groups = _groups_of(store, wanted, prefix="")
            mixture = Mixture.of({group.name: group.count for group in groups})
            seed = int(store.header["rows"][str(wanted)]["seed"]) if seed is None else seed
            return cls(groups, mixture, batch_rows=_checked(batch_rows or _DEFAULT_ROWS), seed=seed)
        spec = read_json(path, "a mixture, made by: gemworks data mix")
        if not isinstance(spec, dict) or spec.get("format") != MIXTURE_FORMAT:
            raise StorageError(f"{path}: must be a packed store or a mixture, made by: gemworks data pack, mix.")
        stores = {name: PackedStore((path.parent / where).resolve()) for name, where in spec["stores"].items()}
        if len({store.header["tokenizer_sha256"] for store in stores.values()}) > 1:
            raise ConfigError(f"{path}: all stores must be packed with one tokenizer, got several.")
        found = {g.name: g for name, s in stores.items() for g in _groups_of(s, length or spec["length"], f"{name}/")}
        if unknown := [name for name in spec["weights"] if name not in found]:
            raise ConfigError(
                f"{path}: no group {', '.join(unknown[:10])} in its stores, which have {', '.join(found)}."
            )
        mixture = Mixture.of(spec["weights"])
        groups = [found[name] for name in mixture.names]
        rows = _checked(spec["batch_rows"] if batch_rows is None else batch_rows)
        return cls(groups, mixture, batch_rows=rows, seed=spec["seed"] if seed is None else seed)

    def require_tokenizer(self, tokenizer: Tokenizer, where: str) -> None:
        """Raise ConfigError unless the stores were packed with this tokenizer; `where` names it."""
        if (found := tokenizer_digest(tokenizer)) != self.tokenizer_sha256:
            raise ConfigError(
                f"{where}: the tokenizer must be the one that the data was packed with (sha256 "
                f"{self.tokenizer_sha256[:12]}), got {found[:12]}.\nPack the data again with it: gemworks data pack."
            )

    def check(self) -> None:
        """Read all stores once and compare with the hashes in their headers. StorageError for a file that differs."""
        for store in {id(group.rows.store): group.rows.store for group in self._groups}.values():
            store.check()

    def __len__(self) -> int:
        """Steps until as many rows are drawn as the stores hold: one epoch where groups weigh as they are large."""
        return max(1, self.num_rows // self.batch_rows)

    def __getitem__(self, step: int) -> Batch:
        """Return batch(step)."""
        return self.batch(step)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Return the batch of a step, or some rows of it (as one of several hosts reads)."""
        drawn = self._drawn(step, rows)
        shape = (len(drawn), self.length)
        ids, targets, segment, position = (np.zeros(shape, np.int32) for _ in range(4))
        for r, (group, number, _) in enumerate(drawn):
            tokens, at = group.rows.store.ids, 0
            for index, piece in enumerate(group.rows.row(number).tolist(), 1):
                start, _, size = piece
                end = at + size
                run = tokens[start : start + size + 1]
                ids[r, at:end], targets[r, at:end] = run[:-1], run[1:]
                segment[r, at:end] = index
                position[r, at:end] = np.arange(size)
                at = end
        return Batch(ids, targets, segment > 0, segment, position)

    def describe(self, step: int, rows: slice | None = None) -> list[dict[str, Any]]:
        """Return what every row of a step holds: its group, epoch and pieces, each with its document's origin."""
        described = []
        first = (rows or slice(None)).indices(self.batch_rows)[0]
        for r, (group, number, epoch) in enumerate(self._drawn(step, rows), first):
            store = group.rows.store
            pieces = [
                {
                    "document": document,
                    "first_token": start - int(store.starts[document]),
                    "positions": size,
                    **store.origin(document),
                }
                for start, document, size in group.rows.row(number).tolist()
            ]
            described.append(
                {
                    "row": r,
                    "group": group.name,
                    "store": str(store.path),
                    "stored_row": number,
                    "epoch": epoch,
                    "pieces": pieces,
                }
            )
        return described

    def _drawn(self, step: int, rows: slice | None) -> list[tuple[_Group, int, int]]:
        """(group, stored row, epoch) of rows of a step."""
        if step < 0:
            raise ConfigError(f"a step must be at least 0, got {step}.")
        start, stop, stride = (rows or slice(None)).indices(self.batch_rows)
        assert stride == 1, "rows of a batch are read in one run"
        drawn = []
        for index, n in self.mixture.draws(step * self.batch_rows + start, stop - start):
            group = self._groups[index]
            epoch, n = divmod(n, group.count)
            drawn.append((group, group.first + permuted(n, group.count, key_of(self.seed, index, epoch)), epoch))
        return drawn


def prefetched(
    source: PackedSource, start: int, stop: int, rows: slice | None = None, ahead: int = 4
) -> Iterator[Batch]:
    """Yield batches start ... stop - 1, made by a thread that stays at most `ahead` steps before the reader."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(value: Batch | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(value, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if stopped.is_set():
                    return
                put(source.batch(step, rows))
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="gemworks-batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            value = ready.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()


def _groups_of(store: PackedStore, length: int, prefix: str) -> list[_Group]:
    rows = store.rows(length)
    bounds = zip(rows.first, rows.first[1:], strict=False)
    groups = [
        _Group(prefix + name, rows, first, end - first)
        for name, (first, end) in zip(store.groups, bounds, strict=True)
        if end > first
    ]
    if not groups:
        raise StorageError(f"{store.path}: holds no row of {length} tokens; a store must have a document to train on.")
    return groups


def _only_length(store: PackedStore) -> int:
    if len(store.lengths) != 1:
        known = ", ".join(map(str, store.lengths)) or "none"
        raise ConfigError(f"{store.path}: length must say which rows to read; laid out are {known}.")
    return store.lengths[0]


def _checked(batch_rows: int) -> int:
    if batch_rows < 1:
        raise ConfigError(f"a batch must have at least 1 row, got {batch_rows}.")
    return batch_rows
