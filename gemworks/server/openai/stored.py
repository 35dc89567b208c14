"""Responses that can be continued or read again by id: in memory, the latest ones, each for the key that made it.

They are gone when the server stops, and the oldest go first when there are too many: a client that gets 404 or
`previous_response_not_found` sends the conversation again. To keep conversations for longer, keep them in the client.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from gemworks.server.errors import FieldError, MissingError

MOST = 10_000
MOST_BYTES = 256_000_000  # of what they hold beside one another; images are most of it


@dataclass(slots=True)
class Stored:
    """One response. conversation: all messages up to and with its answer, without instructions."""

    owner: str
    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    conversation: list[dict[str, Any]]
    num_bytes: int = field(default=0)


class ResponseStore:
    """Keeps responses by id. Event loop only."""

    def __init__(self, *, most: int = MOST, most_bytes: int = MOST_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0

    def add(self, stored: Stored) -> None:
        """Keep a response; the ones used longest ago make room."""
        stored.num_bytes = _size(stored.input_items) + _size(stored.response["output"])
        self._kept[stored.response["id"]] = stored
        self._bytes += stored.num_bytes
        while len(self._kept) > self._most or (self._bytes > self._most_bytes and len(self._kept) > 1):
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.num_bytes

    def get(self, response_id: str, owner: str) -> Stored:
        """Return a response. Raises MissingError where it is not here, or another key's."""
        stored = self._kept.get(response_id)
        if stored is None or stored.owner != owner:
            raise MissingError(f"No response with id {response_id[:80]!r} is kept here.", param="response_id")
        self._kept.move_to_end(response_id)
        return stored

    def previous(self, response_id: str, owner: str) -> Stored:
        """Return the response a new one continues. Raises FieldError."""
        try:
            return self.get(response_id, owner)
        except MissingError:
            raise FieldError(
                f"No response with id {response_id[:80]!r} is kept here: it was not stored, is too old, or the server "
                "was restarted.\nSend the whole conversation as input.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None

    def delete(self, response_id: str, owner: str) -> None:
        """Forget a response. Raises MissingError."""
        stored = self.get(response_id, owner)
        del self._kept[response_id]
        self._bytes -= stored.num_bytes


def _size(value: Any) -> int:
    """Bytes that a JSON-like value takes, about."""
    if isinstance(value, (str, bytes)):
        return 50 + len(value)
    if isinstance(value, dict):
        return 64 + sum(_size(one) for one in value.values())
    if isinstance(value, list):
        return 56 + sum(_size(one) for one in value)
    return 32
