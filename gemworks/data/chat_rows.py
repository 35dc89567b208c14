"""Rendered conversations in rows of one length, as a pure function of (conversations, seed, step): as PackedSource.

    ids_BT        <bos> u1 m1 <bos> u2 m2 . .       whole conversations: nobody sees another's, and none is cut in two
    segment_BT      1    1  1   2    2  2 0 0       tokens see their own segment only; 0 is padding
    loss_mask_BT    0    1  0   0    1  0 0 0       where the target is what the model says

For preferences a pair is laid together: its better text is segment 2p + 1 of a row and its worse one 2p + 2, so that a
row knows all it needs of its pairs.

Conversations are in memory, 5 bytes a token: a set of a million of 500 tokens is 2.5 GB.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gemworks.data.batches import Batch
from gemworks.data.chat import BadLine, BadLines
from gemworks.data.chat_rendering import Rendered
from gemworks.data.packing import pack_rows
from gemworks.data.permutation import key_of, permuted
from gemworks.errors import ConfigError

# B rows, T positions a row, P pairs a row

Long = Literal["truncate", "skip", "stop"]
LONG: tuple[Long, ...] = get_args(Long)


class Texts(NamedTuple):
    """Rendered conversations one after another: text i is ids_N[starts[i] : starts[i + 1]]."""

    ids_N: np.ndarray  # int32
    learned_N: np.ndarray  # bool
    starts: np.ndarray  # int64 [texts + 1]
    origins: list[tuple[str, int]]  # file, line

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.origins)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each text."""
        return np.diff(self.starts)

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return int(self.learned_N.sum())


class PairRows(NamedTuple):
    """B rows of pairs, numpy. The first five are those of `Batch`, the mask in fp32.

    pairs_B: how many pairs a row holds. reference_BQ: fp32 [B, 2 P], what the reference says of segment q + 1's answer,
    ln p summed over its tokens.
    """

    ids_BT: np.ndarray
    targets_BT: np.ndarray
    loss_mask_BT: np.ndarray
    segment_BT: np.ndarray
    position_BT: np.ndarray
    pairs_B: np.ndarray
    reference_BQ: np.ndarray


def joined(rendered: Iterable[tuple[Rendered, tuple[str, int]]], prefix: Sequence[int] = ()) -> Texts:
    """Return texts of rendered conversations with their origins, each after the ids `prefix`, which are not learned."""
    before, unlearned = np.array(prefix, np.int32), np.zeros(len(prefix), bool)
    ids, learned, sizes, origins = [before[:0]], [unlearned[:0]], [0], []
    for one, origin in rendered:
        ids += [before, one.ids]
        learned += [unlearned, one.learned]
        sizes.append(len(prefix) + len(one.ids))
        origins.append(origin)
    return Texts(np.concatenate(ids), np.concatenate(learned), np.cumsum(sizes).astype(np.int64), origins)


def chosen(texts: Texts, keep: np.ndarray, limit: int | None = None) -> Texts:
    """Return the texts of these numbers, each cut to `limit` tokens."""
    sizes = texts.sizes[keep] if limit is None else np.minimum(texts.sizes[keep], limit)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    index = np.repeat(texts.starts[keep] - starts[:-1], sizes) + np.arange(starts[-1])
    return Texts(texts.ids_N[index], texts.learned_N[index], starts, [texts.origins[i] for i in keep])


def fitted(texts: Texts, length: int, long: Long, skipped: BadLines, cut: BadLines, *, group: int = 1) -> Texts:
    """Return the texts that fit into rows of `length`; what does not is noted in `skipped` or `cut` by the policy.

    A text of n tokens takes n - 1 positions. `group` texts in a row belong together (2: pairs) and must fit together;
    they are cut to equal shares. Raises ConfigError for the policy "stop".
    """
    positions = (texts.sizes - 1).reshape(-1, group)
    is_long = positions.sum(axis=1) > length
    numbers = np.arange(len(texts)).reshape(-1, group)
    if not is_long.any():
        return texts
    limit = length // group + 1
    keep = ~is_long
    for i in np.flatnonzero(is_long):
        file, line = texts.origins[numbers[i, 0]]
        tokens = int(positions[i].sum())
        why = f"{tokens:,} tokens are longer than the {length:,} of a row"
        left = [texts.learned_N[texts.starts[n] + 1 : texts.starts[n] + limit].any() for n in numbers[i]]
        if long == "truncate" and all(left):
            cut.add(BadLine("longer than the context", file, line, f"{why}: cut"))
            keep[i] = True
        else:
            nothing = ", and the answer lies behind them" if long == "truncate" else ""
            skipped.add(BadLine("longer than the context", file, line, why + nothing))
    if long == "stop":
        longest = int(positions.sum(axis=1).max())
        skipped.stop(f"Give rows --length {longest} or more, or say what becomes of them: --long truncate or skip.")
    # Only those of a group that is too long are cut.
    short = np.repeat(~is_long[keep], group)
    kept = chosen(texts, numbers[keep].ravel())
    sizes = np.where(short, kept.sizes, np.minimum(kept.sizes, limit))
    return _cut(kept, sizes)


def _cut(texts: Texts, sizes: np.ndarray) -> Texts:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    index = np.repeat(texts.starts[:-1] - starts[:-1], sizes) + np.arange(starts[-1])
    return Texts(texts.ids_N[index], texts.learned_N[index], starts, texts.origins)


class ChatSource:
    """An endless source of batches of conversations; `group` of them are laid together. Has no state."""

    def __init__(
        self, texts: Texts, *, length: int, batch_rows: int, seed: int, vocab_size: int, tokenizer: str, group: int = 1
    ):
        if not len(texts):
            raise ConfigError("there must be a conversation to learn from, and none is left.")
        assert batch_rows >= 1 and len(texts) % group == 0
        self.texts, self.length, self.batch_rows, self.seed, self.group = texts, length, batch_rows, seed, group
        self.vocab_size, self.tokenizer_sha256 = vocab_size, tokenizer
        positions = (texts.sizes - 1).reshape(-1, group).sum(axis=1)
        count = positions.size
        # Nothing is longer than a row here, so packing cuts nothing: a piece is a whole conversation.
        assert positions.max() <= length, (positions.max(), length)
        self._rows = pack_rows(np.arange(count), np.zeros(count, np.int64), positions + 1, length, seed)
        self.num_rows, self.fill = self._rows.num_rows, self._rows.fill(length)
        self.most = int(np.diff(self._rows.ends, prepend=0).max()) if self.num_rows else 0
        digest = hashlib.sha256(json.dumps([length, batch_rows, seed, group, tokenizer]).encode())
        for array in (texts.ids_N, texts.learned_N, texts.starts):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        """Steps until every row was drawn once."""
        return max(1, -(-self.num_rows // self.batch_rows))

    def numbers(self, step: int, rows: slice | None = None) -> list[int]:
        """Return which stored rows these rows of a step are: another order in every epoch."""
        start, stop, stride = (rows or slice(None)).indices(self.batch_rows)
        assert stride == 1, "rows of a batch are read in one run"
        found = []
        for n in range(step * self.batch_rows + start, step * self.batch_rows + stop):
            epoch, n = divmod(n, self.num_rows)
            found.append(permuted(n, self.num_rows, key_of(self.seed, 0, epoch)))
        return found

    def documents(self, row: int) -> np.ndarray:
        """Return the numbers of the conversations (or groups) of a stored row."""
        first = int(self._rows.ends[row - 1]) if row else 0
        return self._rows.pieces["document"][first : int(self._rows.ends[row])].astype(np.int64)

    def batch(self, step: int, rows: slice | None = None) -> Any:
        """Return the batch of a step, or these rows of it."""
        return self.rows(self.numbers(step, rows))

    def rows(self, numbers: Sequence[int]) -> Any:
        """Return stored rows as a Batch."""
        shape = (len(numbers), self.length)
        ids, targets, segment, position = (np.zeros(shape, np.int32) for _ in range(4))
        mask = np.zeros(shape, bool)
        for r, number in enumerate(numbers):
            at, index = 0, 1
            for document in self.documents(number):
                for text in range(document * self.group, (document + 1) * self.group):
                    start, end = int(self.texts.starts[text]), int(self.texts.starts[text + 1])
                    here = slice(at, at + end - start - 1)
                    run = self.texts.ids_N[start:end]
                    ids[r, here], targets[r, here] = run[:-1], run[1:]
                    mask[r, here] = self.texts.learned_N[start + 1 : end]
                    segment[r, here], position[r, here] = index, np.arange(end - start - 1)
                    at, index = here.stop, index + 1
        # Soft tokens of a tuned prompt have ids beyond the vocabulary: the embedding reads them, the head must not.
        return Batch(ids, np.where(targets < self.vocab_size, targets, 0), mask, segment, position)

    def describe(self, step: int, rows: slice | None = None) -> list[dict[str, Any]]:
        """Return what every row of a step holds: the file and line of each conversation."""
        found = []
        for r, number in enumerate(self.numbers(step, rows), (rows or slice(None)).indices(self.batch_rows)[0]):
            origins = [self.texts.origins[int(n) * self.group] for n in self.documents(number)]
            pieces = [{"file": file, "line": line} for file, line in origins]
            found.append({"row": r, "stored_row": number, "pieces": pieces})
        return found


class PairSource(ChatSource):
    """Batches of preferences as PairRows: texts 2i and 2i + 1 are the better and the worse of pair i.

    `reference` [pairs, 2]: ln p of their answers by the model that was there before; zeros where it is None. It follows
    from model and data, so the digest does not know of it.
    """

    def __init__(self, texts: Texts, *, reference: np.ndarray | None = None, **about: Any):
        super().__init__(texts, group=2, **about)
        self.reference = reference

    def rows(self, numbers: Sequence[int]) -> PairRows:
        """Return stored rows."""
        batch = super().rows(numbers)
        pairs_B = np.zeros(len(numbers), np.int32)
        reference_BQ = np.zeros((len(numbers), 2 * self.most), np.float32)
        for r, number in enumerate(numbers):
            documents = self.documents(number)
            pairs_B[r] = documents.size
            if self.reference is not None:
                reference_BQ[r, : 2 * documents.size] = self.reference[documents].ravel()
        mask = batch.loss_mask_BT.astype(np.float32)
        return PairRows(
            batch.ids_BT, batch.targets_BT, mask, batch.segment_BT, batch.position_BT, pairs_B, reference_BQ
        )
