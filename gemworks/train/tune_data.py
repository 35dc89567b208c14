"""The conversations of a tuning run: read, checked, rendered, some held out, cut to the length of rows; and a report.

Nothing is lost without a word: lines read = lines used + lines skipped, and every line that is skipped or cut is named
in the report, which is written beside the run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gemworks.data.chat import (
    BadChat,
    BadLine,
    BadLines,
    Chat,
    Policy,
    Preference,
    conversation_files,
    is_held_out,
    read_chats,
    read_preferences,
)
from gemworks.data.chat_rendering import Rendered, render
from gemworks.data.chat_rows import Long, Texts, fitted, joined
from gemworks.data.store import file_digest
from gemworks.errors import ConfigError
from gemworks.tokenizer.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


@dataclass
class DataReport:
    """What became of the lines. `files`: name -> SHA-256."""

    files: dict[str, str] = field(default_factory=dict)
    read: int = 0
    used: int = 0
    held_out: int = 0
    tokens: int = 0
    learned: int = 0
    skipped: BadLines = field(default_factory=BadLines)
    cut: BadLines = field(default_factory=BadLines)

    def to_json(self) -> dict[str, Any]:
        """Return what OUT/data.json holds."""
        numbers = {name: getattr(self, name) for name in ("files", "read", "used", "held_out", "tokens", "learned")}
        return numbers | {"skipped": self.skipped.to_json(), "cut": self.cut.to_json()}


class Split(NamedTuple):
    """Rendered conversations to learn from, and those held out. group: texts that belong together, 2 for pairs."""

    learn: Texts
    held: Texts
    group: int

    def fitted(self, length: int, long: Long, report: DataReport) -> "Split":
        """Return what fits into rows of `length`, the report completed."""
        learn, held = (
            fitted(texts, length, long, report.skipped, report.cut, group=self.group)
            for texts in (self.learn, self.held)
        )
        report.used, report.held_out = len(learn) // self.group, len(held) // self.group
        report.tokens, report.learned = len(learn.ids_N), learn.num_learned
        return Split(learn, held, self.group)


def read_split(
    data: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    is_pairs: bool,
    validation: float | str,
    bad: Policy,
    prefix: Sequence[int] = (),
    tool_style: str | None = None,
    progress: Progress | None = None,
) -> tuple[Split, DataReport]:
    """Read and render all conversations. Raises ConfigError where none is left, or one is bad and the policy stops."""
    report = DataReport()
    sets: list[list[tuple[Rendered, tuple[str, int]]]] = [[], []]
    for paths, share in _sources(data, validation):
        files = conversation_files(paths)
        report.files |= {str(path): file_digest(path) for path in files}
        read = read_preferences if is_pairs else read_chats
        for one in read(files, report.skipped, progress):
            place = sets[is_held_out(one.digest, share)]
            try:
                place += [(rendered, (one.file, one.line)) for rendered in _rendered(tokenizer, one, tool_style)]
            except BadChat as error:
                report.skipped.add(BadLine(error.kind, one.file, one.line, str(error)))
    group = 2 if is_pairs else 1
    report.read = (len(sets[0]) + len(sets[1])) // group + report.skipped.total
    if bad == "stop":
        report.skipped.stop("Mend them, or leave them out and have them counted: --bad skip.")
    if not sets[0]:
        raise ConfigError(
            f"{', '.join(map(str, data))}: there must be a conversation to learn from, and there is none"
            + (f"; {report.skipped.summary()}, the first: {report.skipped.lines[0]}." if report.skipped.total else ".")
        )
    return Split(joined(sets[0], prefix), joined(sets[1], prefix), group), report


def _sources(data: Sequence[str | Path], validation: float | str) -> Iterator[tuple[Sequence[str | Path], float]]:
    """(files, share that is held out)."""
    if isinstance(validation, str):
        yield data, 0.0
        yield [validation], 1.0
    else:
        yield data, validation


def _rendered(tokenizer: Tokenizer, one: Chat | Preference, tool_style: str | None) -> list[Rendered]:
    if isinstance(one, Chat):
        return [render(tokenizer, one.messages, one.tools, tool_style=tool_style)]
    said = ([*one.prompt, *answer] for answer in (one.chosen, one.rejected))
    return [render(tokenizer, all_, one.tools, after=len(one.prompt), tool_style=tool_style) for all_ in said]
