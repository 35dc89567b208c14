"""A vocabulary as arrays that are mapped from the cache, and the splitter of short texts that needs nothing else.

The engine (`tokenizers`) takes 1.05 s to parse the official tokenizer.json and holds the interpreter's lock meanwhile,
so that no thread can hide it; mapping these arrays takes 15 ms. Much text and control tokens in text are left to the
engine, which is then loaded (docs/decisions/0003).

    names       uint8, UTF-8 of every piece in the order of ids; ends    uint32 [size], where each ends
    order       int32 [size], ids in the order of their names' bytes
    pairs       uint64 [merges] ascending, left id << 32 | right id;     ranks, made  int32 [merges]
    controls    int32, ids of control tokens;   matched   int32, ids that are looked for in text before anything else

The splitter is the engine's algorithm step by step (models/bpe in huggingface/tokenizers 0.23), which is not the
textbook's where two merges make the same piece: tests/golden/tokenizer compares the two over thousands of texts.
"""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from gemworks.tokenizer.vocabulary import SPACE, byte_piece

# The arrays of a table and their types.
ARRAYS = {
    "names": np.dtype(np.uint8),
    "ends": np.dtype(np.uint32),
    "order": np.dtype(np.int32),
    "pairs": np.dtype(np.uint64),
    "ranks": np.dtype(np.int32),
    "made": np.dtype(np.int32),
    "controls": np.dtype(np.int32),
    "matched": np.dtype(np.int32),
}


class TableNames(Sequence):
    """The pieces by id, decoded one at a time."""

    def __init__(self, names: np.ndarray, ends: np.ndarray):
        self._names, self._ends = names, ends

    def __len__(self) -> int:
        return self._ends.size

    def __getitem__(self, index):
        """Return the piece of an id (no slices)."""
        return self.bytes(index).decode("utf-8")

    def bytes(self, index: int) -> bytes:
        """Return the UTF-8 of a piece."""
        if not 0 <= index < self._ends.size:
            raise IndexError(index)
        return self._names[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])].tobytes()


class VocabularyTable:
    """The arrays above, and what is asked of them. Never changed, so many threads may use it."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Take over arrays made by `table_arrays`, as they are in the file that was checked."""
        self._arrays = arrays
        self.names = TableNames(arrays["names"], arrays["ends"])
        self.controls = frozenset(arrays["controls"].tolist())
        self.matched = frozenset(arrays["matched"].tolist())
        self._merges: dict[int, tuple[int, int] | None] = {}  # pairs looked up so far
        self._characters: dict[str, tuple[int, ...]] = {}

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, None where it is none: a binary search over the names."""
        wanted, order = piece.encode("utf-8", "surrogatepass"), self._arrays["order"]
        low, high = 0, order.size
        while low < high:
            middle = (low + high) // 2
            if self.names.bytes(int(order[middle])) < wanted:
                low = middle + 1
            else:
                high = middle
        if low < order.size and self.names.bytes(int(order[low])) == wanted:
            return int(order[low])
        return None

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, control tokens in it taken as characters."""
        ids, position = [], 0
        for found in self._matcher.finditer(text) if self._matcher else ():
            ids += self._split(text[position : found.start()])
            ids.append(self._matched_ids[found.group()])
            position = found.end()
        return ids + self._split(text[position:])

    @cached_property
    def _matched_ids(self) -> dict[str, int]:
        return {self.names[i]: i for i in self.matched}

    @cached_property
    def _matcher(self) -> re.Pattern | None:
        # The leftmost match and there the longest: alternatives are tried in their order.
        texts = sorted(self._matched_ids, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def _split(self, text: str) -> list[int]:
        """BPE over a text without matched tokens in it: byte fallback, then merges, lowest rank and leftmost first."""
        ids: list[int] = []
        for character in text.replace(" ", SPACE):
            known = self._characters.get(character)
            ids += self._character_ids(character) if known is None else known
        if len(ids) < 2:
            return ids
        count = len(ids)
        before, after = list(range(-1, count - 1)), [*range(1, count), -1]
        alive = [True] * count
        self._look_up(ids)
        queue = [(m[0], i, m[1]) for i in range(count - 1) if (m := self._merges[ids[i] << 32 | ids[i + 1]])]
        heapq.heapify(queue)
        while queue:
            _, at, made = heapq.heappop(queue)
            right = after[at]
            if not alive[at] or right < 0:
                continue
            merge = self._merge(ids[at], ids[right])
            # Another merge has been here. One that makes the same piece from other halves is taken for this one, as in
            # the engine.
            if merge is None or merge[1] != made:
                continue
            ids[at], alive[right], after[at] = made, False, after[right]
            if after[at] >= 0:
                before[after[at]] = at
                if merge := self._merge(made, ids[after[at]]):
                    heapq.heappush(queue, (merge[0], at, merge[1]))
            left = before[at]
            if left >= 0 and (merge := self._merge(ids[left], made)):
                heapq.heappush(queue, (merge[0], left, merge[1]))
        return [i for i, lives in zip(ids, alive, strict=True) if lives]

    def _character_ids(self, character: str) -> tuple[int, ...]:
        own = self.id_of(character)
        if own is None:
            found = [self.id_of(byte_piece(value)) for value in character.encode("utf-8")]
            ids = tuple(i for i in found if i is not None)
        else:
            ids = (own,)
        self._characters[character] = ids
        return ids

    def _merge(self, left: int, right: int) -> tuple[int, int] | None:
        """(rank, id made) of a pair, or None."""
        pair = left << 32 | right
        if pair not in self._merges:
            self._find(np.array([pair], np.uint64))
        return self._merges[pair]

    def _look_up(self, ids: list[int]) -> None:
        """Find all neighbours at once: a search for each costs twenty times as much."""
        own = np.array(ids, np.uint64)
        pairs = np.unique(own[:-1] << np.uint64(32) | own[1:])
        self._find(pairs)

    def _find(self, pairs: np.ndarray) -> None:
        known, ranks, made = self._arrays["pairs"], self._arrays["ranks"], self._arrays["made"]
        at = np.minimum(np.searchsorted(known, pairs), max(known.size - 1, 0))
        hits = known[at] == pairs if known.size else np.zeros(pairs.shape, bool)
        for pair, hit, i in zip(pairs.tolist(), hits.tolist(), at.tolist(), strict=True):
            self._merges[pair] = (int(ranks[i]), int(made[i])) if hit else None


def table_arrays(
    names: Sequence[str], merges: Sequence[tuple[str, str]], controls: Iterable[int], matched: Iterable[int]
) -> dict[str, np.ndarray]:
    """Return the arrays of a table. `merges` are in the order of their ranks; a pair given twice has the later one."""
    encoded = [name.encode("utf-8") for name in names]
    ids = {name: i for i, name in enumerate(names)}
    left, right = np.array([ids[a] for a, _ in merges], np.uint64), np.array([ids[b] for _, b in merges], np.uint64)
    made = np.array([ids[a + b] for a, b in merges], np.int32)
    # The first of the reversed list is the last of the list.
    pairs, last = np.unique((left << np.uint64(32) | right)[::-1], return_index=True)
    ranks = (len(merges) - 1 - last).astype(np.int32)
    return {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "ends": np.cumsum([len(name) for name in encoded], dtype=np.uint32),
        "order": np.array(sorted(range(len(encoded)), key=encoded.__getitem__), np.int32),
        "pairs": pairs,
        "ranks": ranks,
        "made": made[ranks],
        "controls": np.array(sorted(controls), np.int32),
        "matched": np.array(sorted(matched), np.int32),
    }
