"""What each run owns: a ring, pages, and its place in the prefix cache. Plain Python over integers.

Every method may leave actions behind; they run on the device in the order they were made, before the next step's rows.
So whatever is freed here may be handed out again at once.
"""

from collections import Counter
from dataclasses import dataclass, field

from gemworks.engine.pages import PagePool
from gemworks.engine.plan import Action, CopyPage, Limits, LoadRing, LocalPage, Run, SaveRing
from gemworks.engine.prefix import Hit, Node, PrefixCache, units_of
from gemworks.engine.rings import RingPool
from gemworks.errors import CapacityError


@dataclass(slots=True, eq=False)
class Holding:
    """What a run has in the cache. `path`: nodes of its whole pages so far; `tail`: the node that ends in the next."""

    run: Run
    path: list[Node] = field(default_factory=list)
    tail: Node | None = None
    low: int = 0  # first position its ring was given: what it read from the prefix cache reaches back no further
    high: int = 0  # positions written to its ring, refused drafts included: it holds the last `slots` of these


class Allocator:
    """Gives runs pages and rings, through the prefix cache, and takes them back."""

    def __init__(self, limits: Limits, pages: PagePool, rings: RingPool, local_pages: PagePool | None):
        self._limits, self._pages, self._rings = limits, pages, rings
        self._has_ring = limits.window is not None
        self.cache = PrefixCache(pages, local_pages, window=limits.window)
        self.actions: list[Action] = []

    @property
    def free_rings(self) -> int:
        """Rings nobody has."""
        return self._rings.num_free

    @property
    def num_rings(self) -> int:
        """Rings there are."""
        return self._rings.num_rings

    @property
    def num_pages(self) -> int:
        """Pages that can be owned."""
        return self._pages.num_pages - 1

    def pages_for(self, tokens: int) -> int:
        """Return how many pages hold `tokens` tokens."""
        return self._pages.pages_for(tokens)

    def admit(self, holding: Holding, longest: int, *, spare: int = 0) -> bool:
        """Give a waiting run its ring and the pages of all its known tokens; False, and nothing taken, if it cannot be.

        `longest`: tokens that may come from the prefix cache. `spare`: pages that must stay free besides.
        """
        run = holding.run
        assert run.ring is None and not run.table
        if not self._rings.num_free:
            return False
        hit = self.cache.find(run, longest) if longest > 0 else Hit()
        shared = [node.page for node in hit.nodes]
        self._pages.share(shared)  # before room is made: these must not go
        count = self._pages.pages_for(len(run.tokens)) - len(shared)
        try:
            fits = self.cache.make_room(count + spare)
            run.table = shared + self._pages.take(count) if fits else []
        except CapacityError:
            fits = False
        if not fits:
            self._pages.release(shared)
            return False
        try:
            run.ring = self._rings.take()
        except CapacityError:
            self._pages.release(run.table)
            run.table = []
            return False
        run.computed = holding.high = hit.length
        holding.low = max(0, hit.length - (self._limits.window or 1) + 1)
        holding.path, holding.tail = list(hit.nodes), None
        if hit.tail is not None and hit.tail.page != run.table[len(shared)]:
            self.actions.append(CopyPage(hit.tail.page, run.table[len(shared)]))
        if hit.local:
            self.actions.append(LoadRing(run.ring, hit.local))
        return True

    def reserve(self, run: Run, tokens: int) -> bool:
        """Own pages for `tokens` tokens in all; False, and nothing taken, where there are none to be had."""
        count = self._pages.pages_for(tokens) - len(run.table)
        if count > 0:
            if not self.cache.make_room(count):
                return False
            try:
                run.table += self._pages.take(count)
            except CapacityError:
                return False
        return True

    def store(self, holding: Holding, *, last_window: bool) -> None:
        """Let the prefix cache have what the run has computed; `last_window` also what a whole page lacks at the end.

        Without it only local pages that the ring still holds whole are saved, with it the window before the end.
        """
        run, size = holding.run, self._pages.page_size
        end = min(run.computed, len(run.tokens))
        if not self.cache.enabled or not run.request.use_cache:
            return
        for index in range(len(holding.path), end // size):
            holding.path.append(self._node(holding, index, units_of(run, index * size, (index + 1) * size)))
            holding.tail = None
        nodes = list(holding.path)
        if last_window and end % size:
            nodes.append(self._tail(holding, units_of(run, end // size * size, end)))
        self.cache.touch(nodes[-1] if nodes else None)
        if self._limits.window is not None and self._limits.window > 1:
            self._save_ring(holding, nodes, end, last_window)

    def free(self, holding: Holding, *, keep: bool) -> None:
        """Take everything from a run; `keep`: the prefix cache gets what it has computed."""
        run = holding.run
        if run.ring is None:
            return
        if keep:
            self.store(holding, last_window=True)
        self._pages.release(run.table)
        self._rings.release(run.ring)
        run.table, run.ring, run.computed = [], None, 0
        holding.path, holding.tail, holding.low, holding.high = [], None, 0, 0

    def take_actions(self) -> tuple[Action, ...]:
        """Return the actions since the last call, in order."""
        actions, self.actions = tuple(self.actions), []
        return actions

    def audit(self, holdings: list[Holding]) -> None:
        """Assert the invariants of pools and cache with all running runs: no page and no ring without an owner."""
        self._pages.audit()
        self._rings.audit()
        self.cache.audit()
        rings = [holding.run.ring for holding in holdings]
        assert None not in rings and len(set(rings)) == len(rings) == self._rings.num_rings - self._rings.num_free
        owners = Counter(self.cache.pages())
        for holding in holdings:
            run, size = holding.run, self._pages.page_size
            owners.update(run.table)
            assert len(run.table) * size >= run.computed
            assert [node.page for node in holding.path] == run.table[: len(holding.path)], (
                "a node is not the run's page"
            )
            assert holding.tail is None or holding.tail.page == run.table[len(holding.path)]
        assert all(self._pages.owners(page) == owners[page] for page in range(self._pages.num_pages)), "a page leaked"

    def _node(self, holding: Holding, index: int, units) -> Node:
        """Return the node of a whole page, the run's own one made or grown, or one that is there already."""
        run, parent = holding.run, self._parent(holding, index)
        node = parent.children.get(units)
        if node is not None:
            if node.page != run.table[index]:  # computed twice at the same time: one of the two is enough
                self._pages.share([node.page])
                self._pages.release([run.table[index]])
                run.table[index] = node.page
            return node
        if holding.tail is not None:
            self.cache.grow(holding.tail, units)
            return holding.tail
        return self.cache.add(parent, units, run.table[index])

    def _tail(self, holding: Holding, units) -> Node:
        """Return the node of the part of a page that a run ends in; `holding.tail` where it is the run's own page."""
        run, index = holding.run, len(holding.path)
        parent, tail = self._parent(holding, index), holding.tail
        node = parent.children.get(units)
        if node is not None:
            return node
        if tail is None:
            tail = holding.tail = self.cache.add(parent, units, run.table[index])
        else:
            self.cache.grow(tail, units)
        return tail

    def _parent(self, holding: Holding, index: int) -> Node:
        return holding.path[index - 1] if index else self.cache.root(holding.run.request.adapter)

    def _save_ring(self, holding: Holding, nodes: list[Node], end: int, last_window: bool) -> None:
        """Copy what the ring still holds to local pages, where nodes have none that reach as far; newest first."""
        run, size = holding.run, self._pages.page_size
        assert self._limits.window is not None and run.ring is not None
        oldest = max(holding.low, holding.high - self._limits.slots)  # position the ring still holds
        # One more than the next token reads: the same prompt again may use all but its last token.
        first = max(0, end - self._limits.window) if last_window else -(-oldest // size) * size
        saved: list[LocalPage] = []
        keep: list[Node] = []
        for index in range(len(nodes) - 1, first // size - 1, -1):
            node = nodes[index]
            start, stop = max(0, oldest - index * size), min(len(node.units), end - index * size)
            keep.append(node)
            held = node.local is not None
            if stop <= start or (held and node.local_end >= stop and node.local_start <= start):
                continue
            if held and last_window and start > node.local_end and index * size + stop == first + 1:
                continue  # that one more is not worth what is there
            if not held and not self.cache.take_local(node, keep):
                break
            assert node.local is not None
            saved.append(LocalPage(index, node.local, stop, start))
            if held and start <= node.local_end and node.local_start <= stop:  # what is there already stays
                start, stop = min(start, node.local_start), max(stop, node.local_end)
            node.local_start, node.local_end = start, stop
            self.cache.use_local(node)
        if saved:
            self.actions.append(SaveRing(run.ring, tuple(reversed(saved))))
