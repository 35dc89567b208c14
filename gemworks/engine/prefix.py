"""Which texts are in the cache: a tree of pages, found again by the tokens in them. Plain Python over integers.

A node is one page of tokens after its parent's: page_size of them, or fewer where a prompt or an answer ended. It owns
a share of a page of the global layers, and perhaps a local page with the same positions of the local layers.

                 root (one an adapter)
                  |
               [a b c d]            page 3, local page 7
               /       \
        [e f g h]     [e x]         page 5, no local page        page 9, local page 2: the end of some answer

A prefix of L tokens can be used where every page up to L is there, and local pages cover positions
[max(0, L - window + 1), L): what the local layers of the token at L read. L may be anywhere in a page: the page is
copied then, because the sequence that found it writes on in it. Without local pages (None) a model with local layers
cannot use any prefix.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice

from gemworks.engine.pages import PagePool
from gemworks.engine.plan import LocalPage, Run
from gemworks.errors import CapacityError

# Children of one node that are compared token by token where none fits whole; the newest first.
SIBLINGS = 64

Units = tuple[Hashable, ...]  # a token id each, or (key of an image, offset in it)


def units_of(run: Run, start: int, end: int) -> Units:
    """Return what tokens [start, end) of a run are to the cache: their ids, or the part of an image they stand for."""
    units: list[Hashable] = [*run.tokens[start:end]]
    for span in run.request.spans:
        for position in range(max(start, span.start), min(end, span.end)):
            units[position - start] = (span.key, position - span.start)
    return tuple(units)


class Node:
    """One page of tokens. `local` holds offsets [local_start, local_end) of the page; roots have page 0."""

    __slots__ = ("children", "local", "local_end", "local_start", "page", "parent", "units")

    def __init__(self, parent: "Node | None", units: Units, page: int):
        self.parent, self.units, self.page = parent, units, page
        self.children: dict[Units, Node] = {}
        self.local: int | None = None
        self.local_start = self.local_end = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest usable prefix: whole pages to share, perhaps one to copy, and the local pages of its last window."""

    length: int = 0
    nodes: tuple[Node, ...] = ()
    tail: Node | None = None
    local: tuple[LocalPage, ...] = ()


class PrefixCache:
    """The tree, and what may be taken from it. One thread.

    Invariants, checked by `audit()`: every node owns a share of its own page; a node is used more recently than its
    children (so the one used longest ago is a leaf); where a run shares a node's page it shares its ancestors' too.
    """

    def __init__(self, pages: PagePool, local_pages: PagePool | None, *, window: int | None):
        self._pages, self._local_pages = pages, local_pages
        self._window = window if window is not None and window > 1 else None  # a window of 1 reads nothing stored
        self._roots: dict[str | None, Node] = {}
        self._used: OrderedDict[Node, None] = OrderedDict()  # nodes, least recently used first
        self._local_used: OrderedDict[Node, None] = OrderedDict()  # those with a local page
        self.evicted_pages = self.evicted_local_pages = 0
        self.enabled = self._window is None or local_pages is not None

    def __len__(self) -> int:
        return len(self._used)

    def pages(self) -> list[int]:
        """Return the pages it has a share of."""
        return [node.page for node in self._used]

    def root(self, adapter: str | None) -> Node:
        """Return the root of an adapter's texts."""
        if adapter not in self._roots:
            self._roots[adapter] = Node(None, (), 0)
        return self._roots[adapter]

    def find(self, run: Run, longest: int) -> Hit:
        """Return the longest usable prefix of a run's tokens, at most `longest` and never inside a soft span."""
        size = self._pages.page_size
        while self.enabled and longest > 0:
            path = self._walk(run, longest)
            hit = self._best(run, path, longest)
            inside = [span.start for span in run.request.spans if span.start < hit.length < span.end]
            if not inside:
                self.touch(hit.nodes[-1] if hit.tail is None and hit.nodes else hit.tail)
                for local in hit.local:
                    node = hit.nodes[local.index] if local.index < len(hit.nodes) else hit.tail
                    self._local_used.move_to_end(node)  # type: ignore[arg-type]
                assert hit.length == len(hit.nodes) * size + (hit.length % size if hit.tail else 0)
                return hit
            longest = inside[0]
        return Hit()

    def add(self, parent: Node, units: Units, page: int) -> Node:
        """Return a new node, which takes a share of `page`."""
        assert units not in parent.children
        self._pages.keep(page)
        node = parent.children[units] = Node(parent, units, page)
        self._used[node] = None
        return node

    def grow(self, node: Node, units: Units) -> None:
        """Let a node hold more tokens of its page."""
        assert node.parent is not None and node.units == units[: len(node.units)] and not node.children
        del node.parent.children[node.units]
        node.units = units
        node.parent.children[units] = node

    def touch(self, node: Node | None) -> None:
        """Note that a node and its ancestors are used now."""
        while node is not None and node.parent is not None:
            self._used.move_to_end(node)
            node = node.parent

    def drop(self, node: Node) -> None:
        """Forget a leaf."""
        assert not node.children and node.parent is not None
        self.drop_local(node)
        del node.parent.children[node.units], self._used[node]
        self._pages.unkeep(node.page)

    def drop_page(self, page: int) -> None:
        """Forget the leaf that keeps a page, if one does: the copy that was to fill the page was never made."""
        for node in [node for node in self._used if node.page == page and not node.children]:
            self.drop(node)

    def make_room(self, count: int) -> bool:
        """Have `count` free pages, by eviction where it must be; False, and nothing evicted, where that cannot be."""
        pool = self._pages
        if pool.num_free + pool.num_idle < count:
            return False
        while pool.num_free < count:
            node = next(iter(self._used))
            if pool.owners(node.page) > 1:
                self.touch(node)  # a run uses it
            else:
                self.drop(node)
                self.evicted_pages += 1
        return True

    def take_local(self, node: Node, keep: Sequence[Node]) -> bool:
        """Give a node a local page, another's where none is free; False where only those of `keep` have any."""
        pool = self._local_pages
        assert pool is not None and node.local is None
        if not pool.num_free:
            oldest = next(iter(self._local_used), None)
            if oldest is None or oldest in keep:
                return False
            self.drop_local(oldest)
            self.evicted_local_pages += 1
        try:
            [node.local] = pool.take(1)
        except CapacityError:
            return False
        self._local_used[node] = None
        return True

    def use_local(self, node: Node) -> None:
        """Note that a node's local page is used now."""
        self._local_used.move_to_end(node)

    def drop_local(self, node: Node) -> None:
        """Take a node's local page away, if it has one."""
        if node.local is not None:
            assert self._local_pages is not None
            self._local_pages.release([node.local])
            del self._local_used[node]
            node.local, node.local_start, node.local_end = None, 0, 0

    def local_owner(self, page: int) -> Node | None:
        """Return the node that has a local page."""
        return next((node for node in self._local_used if node.local == page), None)

    def clear(self) -> None:
        """Forget everything."""
        for node in list(self._local_used):
            self.drop_local(node)
        for node in self._used:
            self._pages.unkeep(node.page)
        self._used.clear()
        self._roots.clear()

    def forget(self, adapter: str | None) -> None:
        """Forget an adapter's texts."""
        nodes = [self._roots.pop(adapter)] if adapter in self._roots else []
        for node in nodes:  # grows as it is read: parents before their children
            nodes += node.children.values()
        for node in reversed(nodes[1:]):
            self.drop(node)

    def audit(self) -> None:
        """Assert the invariants."""
        order = {node: i for i, node in enumerate(self._used)}
        assert len({node.page for node in order}) == len(order), "two nodes have one page"
        seen = 0
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            for units, child in node.children.items():
                seen += 1
                assert child.units == units and child.parent is node and 0 < len(units) <= self._pages.page_size
                assert self._pages.owners(child.page) >= 1
                assert not child.children or len(units) == self._pages.page_size
                assert node.parent is None or order[node] > order[child], "a node is older than its child"
                assert (child.local is None) == (child not in self._local_used)
                assert child.local is None or 0 <= child.local_start < child.local_end <= len(units)
                stack.append(child)
        assert seen == len(order), "a node is not in the tree"
        locals_ = [node.local for node in self._local_used]
        assert len(set(locals_)) == len(locals_), "two nodes have one local page"
        if self._local_pages is not None:
            self._local_pages.audit()
            assert self._local_pages.num_free + len(locals_) == self._local_pages.num_pages - 1, "a local page leaked"

    def _walk(self, run: Run, longest: int) -> list[Node]:
        """Return the whole pages of a run's first `longest` tokens that are in the tree."""
        size = self._pages.page_size
        node, path = self.root(run.request.adapter), []
        for start in range(0, longest - size + 1, size):
            child = node.children.get(units_of(run, start, start + size))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def _best(self, run: Run, path: list[Node], longest: int) -> Hit:
        """Return the longest usable prefix that ends in a page of `path` or beside one."""
        size = self._pages.page_size
        covered = self._covered(path)
        for depth in range(len(path), -1, -1):
            parent = path[depth - 1] if depth else self.root(run.request.adapter)
            wanted = units_of(run, depth * size, min(longest, (depth + 1) * size))
            siblings = islice(reversed(parent.children.values()), SIBLINGS)
            children = siblings if depth == len(path) else (path[depth], *siblings)
            best, count = None, 0
            for child in children:
                usable = self._usable(child, wanted, depth * size, covered[depth])
                if usable > count:
                    best, count = child, usable
                if count == len(wanted):
                    break
            if best is not None:
                whole = count == size and len(best.units) == size
                nodes = (*path[:depth], best) if whole else tuple(path[:depth])
                tail = None if whole else best
                return Hit(depth * size + count, nodes, tail, self._local_of(path[:depth], best, depth * size + count))
        return Hit()

    def _covered(self, path: list[Node]) -> list[int]:
        """Return, for every page edge of a path, from which position on local pages cover all up to it."""
        size = self._pages.page_size
        covered = [0]
        for i, node in enumerate(path):
            if node.local is None or node.local_end < size:
                covered.append((i + 1) * size)
            else:
                covered.append(i * size + node.local_start if node.local_start else covered[-1])
        return covered

    def _usable(self, node: Node, wanted: Units, start: int, covered: int) -> int:
        """Return how many tokens of a page at `start` can be used, where local pages cover [covered, start)."""
        count = 0
        for ours, theirs in zip(node.units, wanted, strict=False):
            if ours != theirs:
                break
            count += 1
        if self._window is None:
            return count
        count = min(count, node.local_end)
        oldest = max(0, start + count - self._window + 1)
        first = start + node.local_start if node.local_start else covered
        return count if node.local is not None and first <= oldest else 0

    def _local_of(self, path: Sequence[Node], last: Node, length: int) -> tuple[LocalPage, ...]:
        """Return the local pages that hold what the token at `length` reads, oldest first."""
        if self._window is None:
            return ()
        size = self._pages.page_size
        pages = []
        for index in range(max(0, length - self._window + 1) // size, -(-length // size)):
            node = path[index] if index < len(path) else last
            assert node.local is not None
            pages.append(LocalPage(index, node.local, min(size, length - index * size)))
        return tuple(pages)
