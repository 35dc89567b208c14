"""How Ray Serve chooses a replica: the one that knows the prompt's beginning, unless it is overloaded.

Imported by Ray alone, in its processes and by this name, so Ray's class may stand at the top.
"""

from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import RequestRouter  # pyright: ignore[reportMissingImports]

from gemworks.server.prefixes import PrefixTable, choose

# Requests a replica may have before another is taken though it must compute the prompt again. As many as are computed
# together by default: what is beyond them waits.
MAX_AHEAD = 8


class PrefixRouter(RequestRouter):
    """Ranks replicas by `prefixes.choose`; loads are those Ray keeps of each."""

    def initialize_state(self, **_more: Any) -> None:
        """Begin with an empty table."""
        self._table = PrefixTable()

    async def choose_replicas(self, candidate_replicas: list, pending_request: Any = None) -> list[list]:
        """Return the candidates in ranks, best first."""
        by_id = {one.replica_id: one for one in candidate_replicas}
        if not by_id:
            return []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # wait before asking the same ones again
        loads = {id: self.replica_queue_len_cache.get(id) or 0 for id in by_id}
        preferred, _ = self._table.find(_keys(pending_request))
        return [[by_id[id] for id in rank] for rank in choose(preferred, loads, max_ahead=MAX_AHEAD)]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Note who has the prompt now."""
        self._table.note(_keys(pending_request), replica_id)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """Forget what a dead replica had."""
        super().on_replica_actor_died(replica_id)
        self._table.forget(replica_id)


def _keys(pending_request: Any) -> Sequence[bytes]:
    return pending_request.kwargs.get("prefix", ()) if pending_request is not None else ()
