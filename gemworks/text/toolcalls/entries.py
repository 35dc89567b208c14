"""Rules of a grammar for entries in a fixed order of which some may be left out."""

import json
from collections.abc import Iterator, Sequence


def optional_entries(rule: str, entries: Sequence[tuple[str, str, bool]], between: str) -> Iterator[str]:
    """Rules of entries in order, with something between them: (head, value, whether it must be there) each.

    The rule `rule` begins the list; `rule_n` is what may follow where nothing is written before entry n, `rule_nx`
    where something is.
    """
    separator = json.dumps(between)
    yield f"{rule}: {rule}_0"
    for n, (head, value, is_needed) in enumerate(entries):
        skipped = ("", "") if is_needed else (f" | {rule}_{n + 1}", f" | {rule}_{n + 1}x")
        yield f"{rule}_{n}: {head} {value} {rule}_{n + 1}x{skipped[0]}"
        yield f"{rule}_{n}x: {separator} {head} {value} {rule}_{n + 1}x{skipped[1]}"
    yield f'{rule}_{len(entries)}: ""'
    yield f'{rule}_{len(entries)}x: ""'
