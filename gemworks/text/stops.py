"""Stop strings in a text that arrives in pieces.

The text ends before the stop that is complete first; of two that end at the same character, before the longer one.
Nothing of a stop is ever handed out, and no more is held back than could still become one:

    stops  "END", "\\n\\n"     push "the EN" -> "the "     push "EMY" -> "ENEMY"     push "\\n" -> ""
"""

from collections.abc import Sequence

from gemworks.errors import RequestError


class StopMatcher:
    """Passes text on until one of `stops` appears. One matcher reads one answer."""

    def __init__(self, stops: Sequence[str]):
        """Raise RequestError for a stop of no characters, which would end every answer at once."""
        if isinstance(stops, str):
            stops = [stops]
        if not all(stops):
            raise RequestError("a stop string must have at least one character, got an empty one.")
        self._stops = tuple(dict.fromkeys(stops))
        self._beginnings = frozenset(stop[:n] for stop in self._stops for n in range(1, len(stop)))
        self._most_held = max((len(stop) - 1 for stop in self._stops), default=0)
        self._held = ""
        self.matched: str | None = None  # the stop that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """Return (text to hand out, whether a stop was reached). After a stop: ("", True), whatever comes."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at], True
        kept = len(text) - self._num_held(text)
        self._held = text[kept:]
        return text[:kept], False

    def flush(self) -> str:
        """Return what was held back, at the end of an answer that reached no stop."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that a stop begins with."""
        for n in range(min(self._most_held, len(text)), 0, -1):
            if text[-n:] in self._beginnings:
                return n
        return 0
