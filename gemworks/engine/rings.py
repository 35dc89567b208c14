"""Who owns which ring of the local layers' KV. Plain integers; the arrays are in the runner."""

from gemworks.errors import CapacityError


class RingPool:
    """Hands out rings, one a sequence; a ring is `slots` positions of every local layer. One thread."""

    def __init__(self, num_rings: int, slots: int):
        self.num_rings = num_rings
        self.slots = slots
        self._free = list(range(num_rings - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Rings that `take` can still hand out."""
        return len(self._free)

    def take(self) -> int:
        """Return a ring, or raise CapacityError."""
        if not self._free:
            raise CapacityError(f"all {self.num_rings} sequences of this engine are running; wait for one to finish.")
        return self._free.pop()

    def release(self, ring: int) -> None:
        """Give a ring back."""
        assert ring not in self._free, f"ring {ring} is released twice"
        self._free.append(ring)

    def audit(self) -> None:
        """Assert that every ring is there once at most."""
        assert len(set(self._free)) == len(self._free) and all(0 <= ring < self.num_rings for ring in self._free)
