"""The kinds of tasks, by the name a task file gives."""

from collections.abc import Callable
from typing import Any


def _calls() -> Any:
    from gemworks.eval.kinds.calls import Calls

    return Calls


def _perplexity() -> Any:
    from gemworks.eval.kinds.perplexity import Perplexity

    return Perplexity


def _choice() -> Any:
    from gemworks.eval.kinds.choice import Choice

    return Choice


def _match() -> Any:
    from gemworks.eval.kinds.match import Match

    return Match


def _needle() -> Any:
    from gemworks.eval.kinds.needle import Needle

    return Needle


def _memorize() -> Any:
    from gemworks.eval.kinds.memorize import Memorize

    return Memorize


KINDS: dict[str, Callable[[], Any]] = {
    "calls": _calls,
    "perplexity": _perplexity,
    "choice": _choice,
    "match": _match,
    "needle": _needle,
    "memorize": _memorize,
}
