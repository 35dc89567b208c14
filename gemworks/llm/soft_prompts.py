"""Soft prompts by name: a request that names one begins with its vectors, as a prompt with an image has the image's.

They count as tokens of the prompt. Words see them as they see words before them, and the prefix cache keeps them.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gemworks.engine.types import Request, SoftSpan

# P soft tokens, D model width


@dataclass(frozen=True, slots=True)
class _Loaded:
    rows_PD: np.ndarray
    key: tuple[str, str, int]


class SoftPrompts:
    """What is loaded. May be used by several threads: a change is one assignment."""

    def __init__(self):
        self._loaded: dict[str, _Loaded] = {}
        self._loads = 0

    def __contains__(self, name: str | None) -> bool:
        return name in self._loaded

    def load(self, name: str, rows_PD: np.ndarray) -> None:
        """Hold a prompt under a name; one of the same name is replaced."""
        self._loads += 1  # another load is another prompt to the prefix cache, whatever its name
        self._loaded = {**self._loaded, name: _Loaded(rows_PD, ("soft prompt", name, self._loads))}

    def unload(self, name: str) -> None:
        """Forget a prompt that is loaded."""
        self._loaded = {one: loaded for one, loaded in self._loaded.items() if one != name}

    def before(self, request: Request) -> Request:
        """Return the request with the vectors of the prompt it names in front of its tokens; others as they are."""
        loaded = self._loaded.get(request.adapter or "")
        if loaded is None:
            return request
        P = len(loaded.rows_PD)
        first = SoftSpan(start=0, length=P, key=loaded.key, embed=lambda: loaded.rows_PD, sees_ahead=False)
        moved = (dataclasses.replace(span, start=span.start + P) for span in request.spans)
        return dataclasses.replace(
            request,
            prompt=(0,) * P + request.prompt,
            spans=(first, *moved),
            score_from=request.score_from + P,
            adapter=None,
        )
