"""What of a conversation is learned, shown: in a terminal in colour, elsewhere between [[ and ]]."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gemworks.cli import console
from gemworks.data.chat import BadChat, BadLine, BadLines, Chat, conversation_files, read_chats
from gemworks.data.chat_rendering import Rendered, render
from gemworks.tokenizer.tokenizer import Tokenizer


def show_chats(paths: Sequence[Path], tokenizer: Tokenizer, *, line: int, count: int, json: bool) -> None:
    """Show `count` conversations from line `line` on, and what is wrong with lines of the files."""
    bad = BadLines()
    rendered: list[tuple[Chat, Rendered]] = []
    number = 0
    for chat in read_chats(conversation_files(paths), bad):
        try:
            made = render(tokenizer, chat.messages, chat.tools)
        except BadChat as error:
            bad.add(BadLine(error.kind, chat.file, chat.line, str(error)))
            continue
        number += 1
        if chat.line >= line and len(rendered) < count:
            rendered.append((chat, made))
    if json:
        shown = [_told(chat, made, tokenizer) for chat, made in rendered]
        return console.emit_json({"conversations": shown, "whole": number, "bad": bad.to_json()})
    for chat, made in rendered:
        num_learned = int(made.learned.sum())
        console.line(f"{Path(chat.file).name}:{chat.line}   {len(made.ids)} tokens, {num_learned} learned")
        _show(runs(made, tokenizer))
        console.line()
    console.line(f"{number:,} conversations can be learned from.")
    if bad.total:
        console.warn("\n".join([f"{bad.summary()}:", *bad.shown()]))


def runs(made: Rendered, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Return (text, whether it is learned) of the runs of ids that are alike in that; control tokens by their names."""
    found = []
    for is_learned, group in groupby(zip(made.ids.tolist(), made.learned.tolist(), strict=True), lambda one: one[1]):
        found.append((tokenizer.decode([i for i, _ in group], skip_control=False), is_learned))
    return found


def _told(chat: Chat, made: Rendered, tokenizer: Tokenizer) -> dict[str, Any]:
    said = [{"text": text, "learned": is_learned} for text, is_learned in runs(made, tokenizer)]
    tokens = {"ids": made.ids.tolist(), "learned": made.learned.astype(int).tolist()}
    return {"file": chat.file, "line": chat.line, **tokens, "runs": said}


def _show(said: list[tuple[str, bool]]) -> None:
    if not sys.stdout.isatty():
        console.line("".join(f"[[{text}]]" if is_learned else text for text, is_learned in said).rstrip("\n"))
        return
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for part, is_learned in said:
        text.append(part, style="bold green" if is_learned else "bright_black")
    text.rstrip()
    Console(highlight=False).print(text, soft_wrap=True)
