"""Who owns which page of the global layers' KV. Plain integers; the arrays are in the runner.

A page holds `page_size` tokens of every global layer. At 131,072 tokens Gemma 3 27B needs 8,192 pages of 16.
"""

from gemworks.errors import CapacityError


class PagePool:
    """Hands out pages of KV slots and takes them back. No tensors, no locks; one thread.

    Invariants, checked by `audit()`:
      - a page is free, or has one or more owners (runs, nodes of the prefix cache), never both;
      - refs[p] is the number of owners of p;
      - page 0 is never handed out (unused table entries point there), so free + owned == num_pages - 1;
      - a page may be kept: one of its owners is the prefix cache. `num_idle` pages have no owner but that.
    """

    def __init__(self, num_pages: int, page_size: int):
        assert num_pages >= 1 and page_size >= 1
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, 0, -1))  # a stack: the page freed last is still in the cache
        self._refs = [0] * num_pages
        self._kept = [False] * num_pages
        self.num_idle = 0

    @property
    def num_free(self) -> int:
        """Pages that `take` can still hand out."""
        return len(self._free)

    def owners(self, page: int) -> int:
        """Return how many owners a page has."""
        return self._refs[page]

    def take(self, count: int) -> list[int]:
        """Return `count` pages with one owner each, or raise CapacityError and take none."""
        if count > len(self._free):
            raise CapacityError(
                f"the KV cache has {len(self._free)} free pages of {self.page_size} tokens, {count} were asked for.\n"
                "Let a running request finish, or start with a larger context."
            )
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._refs[page] = 1
        return pages

    def share(self, pages: list[int]) -> None:
        """Add one owner to each page."""
        for page in pages:
            assert self._refs[page] > 0, f"page {page} is free and cannot be shared"
            self.num_idle -= self._kept[page] and self._refs[page] == 1
            self._refs[page] += 1

    def release(self, pages: list[int]) -> None:
        """Take one owner from each page; those without any become free."""
        for page in pages:
            assert self._refs[page] > self._kept[page], f"page {page} is released twice"
            self._refs[page] -= 1
            self.num_idle += self._kept[page] and self._refs[page] == 1
            if not self._refs[page]:
                self._free.append(page)

    def keep(self, page: int) -> None:
        """Let the prefix cache be one more owner of a page."""
        assert not self._kept[page], f"page {page} is kept twice"
        self.share([page])
        self._kept[page] = True

    def unkeep(self, page: int) -> None:
        """Let the prefix cache be an owner no longer."""
        assert self._kept[page], f"page {page} is not kept"
        self.num_idle -= self._refs[page] == 1
        self._kept[page] = False
        self.release([page])

    def pages_for(self, tokens: int) -> int:
        """Return how many pages hold `tokens` tokens."""
        return -(-tokens // self.page_size)

    def audit(self) -> None:
        """Assert the invariants."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is on the free list twice"
        assert 0 not in free and self._refs[0] == 0, "page 0 was handed out"
        owned = {page for page, refs in enumerate(self._refs) if refs}
        assert not free & owned and len(free) + len(owned) == self.num_pages - 1
        idle = [page for page, refs in enumerate(self._refs) if self._kept[page] and refs == 1]
        assert self.num_idle == len(idle) and not any(self._kept[page] for page in free)
