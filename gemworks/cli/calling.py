"""What `run --tools` adds to a conversation: tools opened from files, questions asked in the terminal, calls shown.

Everything is asked first unless rules say otherwise. gemworks.tools is imported when the first tool is opened.
"""

import re
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.cli import console
from gemworks.errors import ConfigError

if TYPE_CHECKING:
    from gemworks.tools import Event, Question
    from gemworks.tools import Session as ToolSession

ROLE = "assistant"
_SERVER = "mcp:"
_SHOWN_CHARS = 160  # of a call or a result in passing
_ASKED_CHARS = 4000  # of a call that a person is asked about


class Calling:
    """The tools of a conversation. `stop` ends the calls that run.

    rules: a file for gemworks.tools.read_rules; without it every call is asked about. yes: every question is answered
    with yes; what rules deny stays denied. readable: files and folders the tools may read. rounds: how often results go
    back to the model for one question.
    """

    def __init__(
        self,
        *,
        rules: Path | None = None,
        yes: bool = False,
        audit: Path | None = None,
        readable: Sequence[str] = (),
        rounds: int = 8,
    ):
        from gemworks.tools import Access, AuditLog, Policy, Toolbox, read_rules

        self._access = read_rules(rules) if rules else Access(otherwise="ask")
        self._policy = Policy(readable=tuple(readable))
        self._box = Toolbox(sandbox=self._policy)
        self._audit: AuditLog | None = AuditLog(audit) if audit else None
        self._yes, self._always = yes, set[str]()
        self.rounds = rounds
        self.stop = threading.Event()
        # Of the last question: every call with its result, and why it ended.
        self.log: list[dict[str, Any]] = []
        self.ended = ""

    def add(self, told: str) -> list[str]:
        """Open FILE.py or mcp:[NAME=]COMMAND and return the names of its tools."""
        from dataclasses import replace

        if not told.startswith(_SERVER):
            return [tool.name for tool in self._box.add_file(Path(told).expanduser())]
        name, command = _server(told)
        shut_in = replace(self._policy, children=True, tasks=64)
        return [tool.name for tool in self._box.add_server(name, command, sandbox=shut_in)]

    def begin(self) -> "ToolSession":
        """A session for one question: its limits are the question's. Forgets that anything was stopped."""
        from gemworks.tools import Limits

        self.stop.clear()
        self.log.clear()
        limits = Limits(rounds=None, calls=8 * max(self.rounds, 1))
        return self._box.session(
            ROLE, self._access, ask=self._agrees if self._asks else None, limits=limits, audit=self._audit
        )

    @property
    def _asks(self) -> bool:
        return self._yes or console.can_ask()

    def close(self) -> None:
        """End the servers."""
        self._box.close()

    def tell(self) -> None:
        """Say what there is, and where nobody can be asked, what follows from it."""
        how = "calls run without asking" if self._yes else "you are asked before a call, unless rules say otherwise"
        console.note(f"Tools: {', '.join(self._box.tools)}; {how}.")
        if not self._asks and not any(rule.effect == "allow" for rule in self._access.rules):
            console.warn(
                "every call will be denied, as nobody can be asked here.\n"
                "Allow some with --rules FILE, or all with --yes."
            )

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, what may happen, and description of every tool."""
        return [(tool.name, self._rights(tool.name), _short(tool.description, 80)) for tool in self._box.tools.values()]

    def _rights(self, name: str) -> str:
        if not self._access.may_ever(ROLE, name):
            return "denied"
        if self._yes or name in self._always:
            return "allowed"
        effects = {rule.effect for rule in self._access.rules if rule.concerns(ROLE, name)}
        return "by rules" if effects else "asked"

    def _agrees(self, question: "Question") -> bool:
        """Put a question in the terminal; Ctrl-C there is no, and stops the conversation."""
        if self._yes or question.tool in self._always:
            return True
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            console.note(f"May the model call this? {question.reason}.")
            answer = console.ask(f"  {_asked(question.shown())}\n  y yes, n no, a always {question.tool} [y/N/a] ")
        except KeyboardInterrupt:
            console.note("")
            self.stop.set()
            return False
        finally:
            signal.signal(signal.SIGINT, before)
        if answer in ("a", "always"):
            self._always.add(question.tool)
        return answer in ("y", "yes", "a", "always")

    def last(self, events: Iterator["Event"]) -> Any:
        """Follow a conversation to its end and return its last Completion."""
        completion = None
        for event in events:
            self.notice(event)
            completion = event.completion
        return completion

    def notice(self, event: "Event") -> None:
        """Show calls and results in passing, on stderr, and keep them for --json."""
        if event.kind == "calls":
            for call in event.calls:
                console.note(f"-> {call_text(call)}")
        if event.kind == "result" and event.result is not None and event.call is not None:
            result, function = event.result, event.call["function"]
            mark = "<-" if result.ok else f"<- [{result.status}]"
            console.note(f"{mark} {_short(result.text, _SHOWN_CHARS)}")
            self.log.append(
                {
                    "round": event.round + 1,
                    "id": event.call["id"],
                    "name": function["name"],
                    "arguments": _value(function["arguments"]),
                    "status": result.status,
                    "result": result.value if result.ok else result.text,
                    "seconds": round(result.wall_s, 3),
                }
            )
        if event.kind == "end":
            self.ended = event.why or ""
            if self.ended == "rounds":
                console.note(f"[answered without tools: {self.rounds} rounds of calls were used up (--rounds)]")
            if (cut := getattr(event.completion, "partial_call", None)) is not None:
                console.note(f"[a call of {_short(cut.name or 'a tool', 80)} was cut off: max_tokens or the context]")


def call_text(call: Mapping[str, Any]) -> str:
    """A call in one short line that is safe to print."""
    from gemworks.tools import Question

    name, values = str(call["function"]["name"]), _value(call["function"]["arguments"])
    if not isinstance(values, dict):
        return _short(f"{name}({values})", _SHOWN_CHARS)
    return _short(Question(role=ROLE, tool=name, arguments=values, reason="").shown(), _SHOWN_CHARS)


def _server(told: str) -> tuple[str, list[str]]:
    """(name, command) of mcp:[NAME=]COMMAND."""
    line = told.removeprefix(_SERVER)
    named = re.match(r"([A-Za-z_]\w*)=(.+)", line, re.DOTALL)
    try:
        command = shlex.split(named[2] if named else line)
    except ValueError as error:
        raise ConfigError(f"--tools {told}: the command must be as in a shell: {error}.") from error
    if not command:
        raise ConfigError("--tools mcp: needs a command, as in: --tools 'mcp:files=/usr/local/bin/files-mcp /srv/docs'")
    name = named[1] if named else re.sub(r"\W", "_", Path(command[0]).stem)
    return name if not name[:1].isdigit() else f"_{name}", command


def _asked(text: str) -> str:
    """All of a call, unless it is very long: then it is said how much is not shown."""
    if len(text) <= _ASKED_CHARS:
        return text
    half = _ASKED_CHARS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters are not shown ...] {text[-half:]}"


def _short(text: str, most: int) -> str:
    """The beginning of a text in one line, harmless for a terminal."""
    from gemworks.tools.output import clean_text

    line = " ".join(clean_text(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _value(arguments: Any) -> Any:
    import json

    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
