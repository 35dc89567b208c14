"""One text in the cache: which tokens are stored, in which pages and ring, and how far it may be taken back.

Plain Python over integers; no jax.
"""

from gemworks.engine.pages import PagePool
from gemworks.engine.rings import RingPool


class Sequence:
    """Owns pages and one ring for `stored` tokens. `window` is that of the local layers (None: there are none)."""

    def __init__(self, pages: PagePool, rings: RingPool, *, window: int | None):
        self._pages, self._rings, self._window = pages, rings, window
        self.tokens: list[int] = []  # whose keys and values are stored, in order
        self.table: list[int] = []
        self.ring = rings.take()

    @property
    def stored(self) -> int:
        """Tokens in the cache; the position of the next one."""
        return len(self.tokens)

    def reserve(self, tokens: int) -> None:
        """Own enough pages for `tokens` tokens in all."""
        missing = self._pages.pages_for(tokens) - len(self.table)
        if missing > 0:
            self.table += self._pages.take(missing)

    def append(self, ids: list[int]) -> None:
        """Note that the next tokens are stored now."""
        self.tokens += ids
        assert len(self.tokens) <= len(self.table) * self._pages.page_size

    def can_rewind(self, length: int) -> bool:
        """Whether the cache still holds everything a next token at position `length` would read.

        Its local layers read positions length - W + 1 ... length - 1; position p is lost once p + slots is stored.
        """
        if self._window is None:
            return True
        oldest = max(0, length - self._window + 1)
        return oldest >= length or oldest + self._rings.slots >= self.stored

    def rewind(self, length: int) -> None:
        """Forget the tokens from `length` on and give their pages back."""
        assert length == 0 or self.can_rewind(length)
        del self.tokens[length:]
        keep = self._pages.pages_for(length)
        self._pages.release(self.table[keep:])
        del self.table[keep:]

    def free(self) -> None:
        """Give everything back; the sequence must not be used again."""
        self._pages.release(self.table)
        self._rings.release(self.ring)
        self.table, self.tokens, self.ring = [], [], -1
