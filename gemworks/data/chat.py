"""Conversations to learn from: one JSON object a line, in OpenAI's shape, checked before anything is trained on them.

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", ...}, {"role": "assistant", ...}],
     "tools": [...]}                                                    tools only where there are some

    {"prompt": [messages], "chosen": [messages], "rejected": [messages], "tools": [...]}        for preferences

A prompt, chosen or rejected that is a text stands for one user, or one assistant message. An assistant message with
"weight": 0 is read and not learned, as in OpenAI's files. Other fields are left alone.

A line that cannot be learned from is named with its file, line and message, and counted by what is wrong with it; the
caller says whether that stops the run or is skipped (`BadLines`). What was read is what is used and what is skipped.

Not here: token ids and which of them count (chat_rendering.py), rows (chat_rows.py).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gemworks.data.readers import find_files, raw_batches
from gemworks.errors import ConfigError

Kind = Literal[
    "not a conversation",
    "roles out of order",
    "empty turn",
    "tool result without a call",
    "picture",
    "nothing to learn",
    "cannot be rendered",
    "longer than the context",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Policy = Literal["stop", "skip"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

SHOWN, KEPT = 10, 1000  # lines of an error, and of a report
_ROLES = ("system", "user", "assistant", "tool")


class BadChat(Exception):
    """Why a conversation cannot be learned from; becomes a BadLine where its line is known. Never a user's to see."""

    def __init__(self, kind: Kind, why: str):
        super().__init__(why)
        self.kind: Kind = kind


@dataclass(frozen=True)
class Chat:
    """A checked conversation. file, line: where from, lines from 1. digest: of what it says, 16 hexadecimal digits."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    file: str
    line: int
    digest: str


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer, each a list of messages that follow the prompt."""

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    file: str
    line: int
    digest: str


@dataclass(frozen=True)
class BadLine:
    """A line that is not used, or not whole, and why."""

    kind: Kind
    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass
class BadLines:
    """What was wrong with lines: counts by kind, and the first KEPT of them."""

    counts: Counter = field(default_factory=Counter)
    lines: list[BadLine] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many lines."""
        return sum(self.counts.values())

    def add(self, bad: BadLine) -> None:
        """Count a line."""
        self.counts[bad.kind] += 1
        if len(self.lines) < KEPT:
            self.lines.append(bad)

    def stop(self, hint: str) -> None:
        """Raise a ConfigError that names the first lines and counts all, if there is one."""
        if self.lines:
            raise ConfigError("\n".join([f"{self.summary()}:", *self.shown(), hint]))

    def shown(self) -> list[str]:
        """The first lines as text."""
        more = [f"  ... and {self.total - SHOWN:,} more"] if self.total > SHOWN else []
        return [f"  {line}" for line in self.lines[:SHOWN]] + more

    def summary(self) -> str:
        """Return "3 lines cannot be learned from (2 empty turn, 1 picture)"."""
        kinds = ", ".join(f"{self.counts[kind]:,} {kind}" for kind in KINDS if self.counts[kind])
        lines = "1 line" if self.total == 1 else f"{self.total:,} lines"
        return f"{lines} cannot be learned from ({kinds})"

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the lines."""
        lines = [{"kind": one.kind, "file": one.file, "line": one.line, "why": one.why} for one in self.lines]
        return {"counts": dict(self.counts), "lines": lines}


def conversation_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that `paths` stand for. Raises ConfigError for one that is not JSONL."""
    files = find_files(paths)
    for path in files:
        if not {".jsonl", ".ndjson"} & set(path.suffixes):
            raise ConfigError(
                f"{path}: conversations must be JSONL (.jsonl or .ndjson, also .gz, .xz or .zst), one a line, got "
                f"{path.suffix or 'no suffix'}."
            )
    return files


def read_chats(
    files: Sequence[Path], bad: BadLines, progress: Callable[[int, int], None] | None = None
) -> Iterator[Chat]:
    """Yield the conversations of all files that can be learned from; count the others in `bad`. StorageError."""
    for value, file, line in _objects(files, bad, progress):
        try:
            yield _chat(value, file, line)
        except BadChat as error:
            bad.add(BadLine(error.kind, file, line, str(error)))


def read_preferences(
    files: Sequence[Path], bad: BadLines, progress: Callable[[int, int], None] | None = None
) -> Iterator[Preference]:
    """Yield the preferences of all files; count what is none in `bad`. StorageError."""
    for value, file, line in _objects(files, bad, progress):
        try:
            yield _preference(value, file, line)
        except BadChat as error:
            bad.add(BadLine(error.kind, file, line, str(error)))


def check_messages(messages: Any, *, at: str = "messages", more: int = 0) -> None:
    """Raise BadChat unless `messages` is a conversation from its beginning whose every turn says something.

    `more`: how many of the last messages are the answer: the model's turns, and results of its tools.
    """
    if not isinstance(messages, list) or not messages:
        raise BadChat("not a conversation", f"{at} must be a list of messages, got {_short(messages)}")
    expected, waiting, known = "user", [], set()
    for i, message in enumerate(messages):
        where = f"{at}[{i}]"
        role = _role(message, where)
        if role == "system":
            if i:
                raise BadChat("roles out of order", f"{where}: a system message must come first")
        elif role == "tool":
            _check_result(message, where, waiting, known)
        elif waiting:
            raise BadChat("roles out of order", f"{where}: the result of call {waiting[0]!r} must come before {role}")
        elif role != expected:
            raise BadChat("roles out of order", f'{where}: the role must be "{expected}" here, got "{role}"')
        _check_content(message, role, where)
        if role == "assistant":
            waiting = [_call_id(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(_calls(message, where))]
            known |= set(waiting)
            expected = "assistant" if waiting else "user"
        elif role == "user":
            expected = "assistant"
    if more and any(message["role"] in ("system", "user") for message in messages[-more:]):
        raise BadChat(
            "roles out of order", f"{at}: an answer must be the assistant's messages, and results of its tools"
        )


def _objects(
    files: Sequence[Path], bad: BadLines, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[dict[str, Any], str, int]]:
    """(object, file, line) of every line that is an object; the others are counted."""
    done, total = 0, sum(path.stat().st_size for path in files)
    for batch in raw_batches(files):
        for line, data in batch.records:
            if data is not None and not data.strip():
                continue
            try:
                yield _object(data), batch.file, line
            except BadChat as error:
                bad.add(BadLine(error.kind, batch.file, line, str(error)))
        done += batch.num_bytes
        if progress is not None:
            progress(min(done, total), total)


def _object(data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise BadChat("not a conversation", "the line is longer than 32 MB")
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadChat("not a conversation", f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise BadChat("not a conversation", "a text holds half a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise BadChat("not a conversation", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadChat("not a conversation", f"a JSON object is needed, got {_short(value)}")
    return value


def _chat(value: Mapping[str, Any], file: str, line: int) -> Chat:
    if "messages" not in value:
        hint = ", the form of ShareGPT" if "conversations" in value else ""
        raise BadChat("not a conversation", f'the field "messages" is missing, got {_short(sorted(value))}{hint}')
    messages, tools = value["messages"], _tools(value)
    check_messages(messages)
    if not any(is_learned(message) for message in messages):
        raise BadChat("nothing to learn", "messages: at least one assistant message must be there to be learned")
    return Chat(messages, tools, file, line, digest_of([messages, tools]))


def _preference(value: Mapping[str, Any], file: str, line: int) -> Preference:
    if missing := [name for name in ("prompt", "chosen", "rejected") if name not in value]:
        raise BadChat("not a conversation", f'the field "{missing[0]}" is missing, got {_short(sorted(value))}')
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    parts = {name: _messages(value[name], role) for name, role in roles.items()}
    tools = _tools(value)
    for name in ("chosen", "rejected"):
        if not isinstance(parts[name], list) or not parts[name] or not isinstance(parts["prompt"], list):
            raise BadChat("not a conversation", f"prompt and {name} must be lists of messages or texts")
        check_messages([*parts["prompt"], *parts[name]], at=f"prompt + {name}", more=len(parts[name]))
    if parts["chosen"] == parts["rejected"]:
        raise BadChat("nothing to learn", "chosen and rejected must differ")
    digest = digest_of([*parts.values(), tools])
    return Preference(parts["prompt"], parts["chosen"], parts["rejected"], tools, file, line, digest)


def _messages(value: Any, role: str) -> Any:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [value] if isinstance(value, dict) else value


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is the model's and not one of weight 0."""
    return message["role"] in ("assistant", "model") and message.get("weight", 1) != 0


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a value as JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_held_out(digest: str, share: float) -> bool:
    """Whether a conversation of this digest is of the held-out `share`: by what it says, not by where it stands."""
    return int(digest, 16) < share * 16 ** len(digest)


def _role(message: Any, where: str) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise BadChat("not a conversation", f'{where}: a message must have a "role", got {_short(message)}')
    role = "assistant" if role == "model" else role
    if role not in _ROLES:
        raise BadChat("roles out of order", f"{where}: the role must be one of {', '.join(_ROLES)}, got {_short(role)}")
    return role


def _check_content(message: Mapping[str, Any], role: str, where: str) -> None:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    for j, part in enumerate(parts):
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind != "text":
                raise BadChat("picture", f"{where}.content[{j}]: tuning learns from text, got a part of type {kind!r}")
            part = part.get("text")
        if not isinstance(part, str) and content is not None:
            raise BadChat(
                "not a conversation", f"{where}: content must be a text or a list of parts, got {_short(part)}"
            )
    said = "".join(part if isinstance(part, str) else part["text"] for part in parts if part is not None)
    if not said.strip() and not (role == "assistant" and message.get("tool_calls")) and role != "tool":
        raise BadChat("empty turn", f"{where}: the {role}'s message says nothing")


def _calls(message: Mapping[str, Any], where: str) -> list[Any]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadChat("not a conversation", f"{where}.tool_calls must be a list, got {_short(calls)}")
    return calls


def _call_id(call: Any, where: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise BadChat(
            "not a conversation", f'{where} must have "function" with a name and arguments, got {_short(call)}'
        )
    return str(call.get("id", function["name"]))


def _check_result(message: Mapping[str, Any], where: str, waiting: list[str], known: set[str]) -> None:
    """Take the call that a tool's message answers from those that wait."""
    name = message.get("tool_call_id")
    if name is None and len(waiting) == 1:
        name = waiting[0]
    if name not in waiting:
        what = "was answered already" if name in known else "was made by nobody"
        raise BadChat("tool result without a call", f"{where}: the call {_short(name)} {what}")
    waiting.remove(name)


def _tools(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = value.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadChat("not a conversation", f"tools must be a list of objects, got {_short(tools)}")
    return tools


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
