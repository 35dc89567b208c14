"""Calls of one role under one set of rules: checked, asked about, limited, run, written down.

A session's role, rules and limits are fixed when it is made. What a tool returns is data: it is never searched for
calls, and whatever it persuades a model to call meets the same rules. The order for every call:

    limits -> does the tool exist -> rules -> arguments against the schema -> ask -> log -> run -> result -> log

`call` returns a CallResult for everything a model can cause; it raises for what it cannot (a log that cannot be
written).
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from gemworks.errors import BackendError, ConfigError
from gemworks.tools.access import Access, Verdict, strictest
from gemworks.tools.audit import AuditLog, digest
from gemworks.tools.output import clean
from gemworks.tools.sandbox.runner import Outcome
from gemworks.tools.toolbox import Tool, Toolbox

Status = Literal["ok", "unknown", "denied", "invalid", "limit", "failed", "wrong_result", "stopped"]
_MAX_DEPTH_OF_JSON = 64
_PARALLEL = 4
_WAKE_S = 0.1  # how soon a call that waits for an answer hears that it was stopped


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a person is asked before a call: may `role` call `tool` with `arguments`? Show them with `shown`."""

    role: str
    tool: str
    arguments: dict[str, Any]
    reason: str

    def shown(self) -> str:
        """The call as text that is safe to print."""
        values = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in clean(self.arguments).items())
        return f"{self.tool}({values})"


Ask = Callable[[Question], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a session may use in all; None is no limit.

    rounds: turns of a model that made calls; calls; repeats: calls of one tool with the same arguments; depth: sessions
    within sessions; cost: sum of the tools' costs; wall_s: seconds since the session began.
    """

    rounds: int | None = 16
    calls: int | None = 64
    repeats: int | None = 3
    depth: int | None = 3
    cost: float | None = None
    wall_s: float | None = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallResult:
    """How a call ended. `text` is for the model; `value` is the result where `status` is ok."""

    tool: str
    status: Status
    text: str
    value: Any = None
    id: str | None = None
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the tool ran and its result is what it declares."""
        return self.status == "ok"


@dataclass(slots=True)
class _Spent:
    """What a session and those within it have used; one lock for all."""

    start: float = field(default_factory=time.monotonic)
    rounds: int = 0
    calls: int = 0
    cost: float = 0.0
    same: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Session:
    """Calls on behalf of `role`. Threads may share it."""

    def __init__(
        self,
        toolbox: Toolbox,
        role: str,
        access: Access,
        *,
        ask: Ask | None = None,
        limits: Limits,
        audit: AuditLog | None = None,
    ):
        self._toolbox, self._ask, self._limits, self._audit = toolbox, ask, limits, audit
        self._chain: tuple[tuple[str, Access], ...] = ((role, access),)
        self._spent = _Spent()

    @property
    def role(self) -> str:
        """Who calls; in a nested session the whole way, as "assistant/researcher"."""
        return "/".join(role for role, _ in self._chain)

    def nested(self, role: str, access: Access | None = None) -> "Session":
        """A session within this one, for a tool or an agent that calls tools itself. It can only be narrower: a call
        must be allowed to every role on the way, and all count towards the same limits."""
        if self._limits.depth is not None and len(self._chain) > self._limits.depth:
            raise ConfigError(f"sessions may be nested {self._limits.depth} deep (Limits.depth), {self.role} is.")
        inner = Session(
            self._toolbox, role, access or self._chain[-1][1], ask=self._ask, limits=self._limits, audit=self._audit
        )
        inner._chain = (*self._chain, (role, access or self._chain[-1][1]))
        inner._spent = self._spent
        return inner

    def schemas(self) -> list[dict[str, Any]]:
        """Declarations of the tools that some call could be allowed of, in OpenAI's form."""
        return [
            tool.schema()
            for tool in self._toolbox.tools.values()
            if all(access.may_ever(role, tool.name) for role, access in self._chain)
        ]

    def call_all(self, calls: Iterable[Mapping[str, Any]], *, stop: threading.Event | None = None) -> list[CallResult]:
        """The calls of one turn of a model, in parallel: dicts with name, arguments and perhaps id, or OpenAI's
        tool_calls.

        Questions are put to `ask` in this thread, one at a time. Setting `stop` ends the calls that run; those that
        ended before keep their results. What is raised here meanwhile (Ctrl-C) ends them too.
        """
        wanted = [_wanted(call) for call in calls]
        stop = stop or threading.Event()
        with self._spent.lock:
            self._spent.rounds += bool(wanted)
            over = self._limits.rounds is not None and self._spent.rounds > self._limits.rounds
        if over:
            why = f"this conversation may have {self._limits.rounds} rounds of calls (Limits.rounds)"
            return [self._refused(name, arguments, "limit", why, call_id) for name, arguments, call_id in wanted]
        questions = _Questions(stop)
        with ThreadPoolExecutor(min(_PARALLEL, len(wanted)) or 1) as pool:
            started = [pool.submit(self._call, *one, stop=stop, ask=questions.put) for one in wanted]
            try:
                questions.answer(started, self._asked)
            except BaseException:
                stop.set()
                raise
        return [one.result() for one in started]

    def call(
        self, name: str, arguments: Any, *, id: str | None = None, stop: threading.Event | None = None
    ) -> CallResult:
        """Make one call; `arguments` is a dict or the JSON text of one. Setting `stop` in another thread ends it."""
        return self._call(name, arguments, id, stop=stop or threading.Event(), ask=self._asked)

    def _call(self, name: str, arguments: Any, id: str | None, *, stop: threading.Event, ask: Ask) -> CallResult:
        values = _read(arguments)
        if values is None:
            return self._refused(name, arguments, "invalid", "the arguments must be one JSON object", id)
        if why := self._over_limit(name, values):
            return self._refused(name, values, "limit", why, id)
        tool = self._toolbox.tools.get(name)
        if tool is None:
            near = self._toolbox.near(name)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            return self._refused(name, values, "unknown", f"there is no tool {str(name)[:80]}{hint}", id)
        verdict = self._decide(name, values)
        if verdict.effect == "deny":
            return self._refused(name, values, "denied", verdict.reason, id)
        if wrong := tool.arguments_schema.complaints(values):
            return self._refused(name, values, "invalid", "; ".join(wrong), id)
        if not stop.is_set() and verdict.effect == "ask" and not self._agreed(name, values, verdict.reason, ask):
            why = (
                "the person who was asked did not agree" if self._ask else f"{verdict.reason}, and nobody can be asked"
            )
            if not stop.is_set():
                return self._refused(name, values, "denied", why, id)
        if stop.is_set():
            return self._refused(name, values, "stopped", "it was stopped before it ran", id)
        self._log(name, values, "allowed" if verdict.effect == "allow" else "agreed", verdict.reason, id)
        return self._run(tool, values, id, stop)

    def _run(self, tool: Tool, values: dict[str, Any], call_id: str | None, stop: threading.Event) -> CallResult:
        try:
            outcome = tool.run(json.loads(json.dumps(values)), stop)  # a copy: the log tells what was checked
        except BackendError as error:
            outcome = Outcome(status="failed", error=str(error))
        status: Status = "ok"
        text, value = "", None
        if outcome.status == "ok":
            value = _as_json(outcome.value)
            wrong = ["it is no JSON"] if value is _NO_JSON else []
            if not wrong and tool.result_schema is not None:
                wrong = tool.result_schema.complaints(value)
            if wrong:
                status, value = "wrong_result", None
                text = f"error: the result of {tool.name} is not what it declares: {'; '.join(wrong)}"
            else:
                value = clean(value)
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        else:
            status = outcome.status if outcome.status in ("limit", "invalid", "stopped") else "failed"
            text = f"error: {tool.name}: {outcome.error}"
        told = digest(value) if status == "ok" else None
        self._log(tool.name, values, status, "" if status == "ok" else text, call_id, result=told, where=tool.where)
        return CallResult(
            tool=tool.name,
            status=status,
            text=text,
            value=value,
            id=call_id,
            stdout=outcome.stdout,
            stderr=outcome.stderr,
            wall_s=outcome.wall_s,
        )

    def _decide(self, name: str, values: dict[str, Any]) -> Verdict:
        return strictest([access.decide(role, name, values) for role, access in self._chain])

    def _agreed(self, name: str, values: dict[str, Any], reason: str, ask: Ask) -> bool:
        question = Question(role=self.role, tool=name, arguments=json.loads(json.dumps(values)), reason=reason)
        return ask(question)

    def _asked(self, question: Question) -> bool:
        if self._ask is None:
            return False
        try:
            return self._ask(question) is True
        except Exception:  # who asks could not: that is no yes
            return False

    def _over_limit(self, name: str, values: dict[str, Any]) -> str:
        """Count a call; why it is one too many, or "". Calls that are denied later count too: a loop of them ends."""
        limits, spent = self._limits, self._spent
        tool = self._toolbox.tools.get(name)
        cost = tool.cost if tool else 0.0
        same = f"{name} {digest(values)}"
        with spent.lock:
            if limits.wall_s is not None and time.monotonic() - spent.start > limits.wall_s:
                return f"this session may last {limits.wall_s:g} s (Limits.wall_s)"
            if limits.calls is not None and spent.calls >= limits.calls:
                return f"this session may make {limits.calls} calls (Limits.calls)"
            if limits.repeats is not None and spent.same[same] >= limits.repeats:
                return f"{name} was called {limits.repeats} times with these arguments (Limits.repeats); change them"
            if limits.cost is not None and spent.cost + cost > limits.cost:
                return (
                    f"{name} costs {cost:g} and {limits.cost - spent.cost:g} of {limits.cost:g} is left (Limits.cost)"
                )
            spent.calls += 1
            spent.cost += cost
            spent.same[same] += 1
        return ""

    def _refused(self, name: str, arguments: Any, status: Status, why: str, call_id: str | None) -> CallResult:
        self._log(name, arguments, status, why, call_id)
        return CallResult(tool=str(name), status=status, text=clean(f"error: {name}: {why}"), id=call_id)

    def _log(self, name: str, arguments: Any, verdict: str, reason: str, call_id: str | None, **more: Any) -> None:
        if self._audit is None:
            return
        try:
            about = digest(arguments)
        except (TypeError, ValueError, RecursionError):
            about = digest(repr(arguments)[:10_000])
        fields = {"who": self.role, "tool": str(name), "arguments": about, "verdict": verdict, "reason": reason[:500]}
        self._audit.record(**fields, call=call_id, **more)


class _Questions:
    """Brings questions from the threads that call to the one that asks."""

    def __init__(self, stop: threading.Event):
        self._stop = stop
        self._waiting: SimpleQueue[tuple[Question, Future[bool]] | None] = SimpleQueue()

    def put(self, question: Question) -> bool:
        """Ask, from any thread, and wait for the answer; no where everything is stopped meanwhile."""
        answer: Future[bool] = Future()
        self._waiting.put((question, answer))
        while not self._stop.is_set():
            try:
                return answer.result(_WAKE_S)
            except TimeoutError:
                continue
        return False

    def answer(self, calls: list[Future[CallResult]], ask: Ask) -> None:
        """Answer with `ask`, in this thread, until all calls have ended."""
        for call in calls:
            call.add_done_callback(lambda _: self._waiting.put(None))
        left = len(calls)
        while left:
            item = self._waiting.get()
            if item is None:
                left -= 1
            else:
                question, answer = item
                answer.set_result(not self._stop.is_set() and ask(question))


_NO_JSON = object()


def _as_json(value: Any) -> Any:
    """A value as JSON would bring it back (tuples are lists), or _NO_JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return _NO_JSON


def _read(arguments: Any) -> dict[str, Any] | None:
    """Arguments as a dict of plain JSON of their own, or None where they are not."""
    if arguments is None or arguments == "":
        return {}
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, allow_nan=False)
        values = json.loads(text, parse_constant=_no_constant)
        return values if isinstance(values, dict) and _depth(values) <= _MAX_DEPTH_OF_JSON else None
    except (TypeError, ValueError, RecursionError):
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list) or not value:
        return 0
    return 1 + max(_depth(part) for part in (value.values() if isinstance(value, dict) else value))


def _wanted(call: Mapping[str, Any]) -> tuple[str, Any, str | None]:
    """(name, arguments, id) of a call in either shape."""
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ConfigError(f"a call must have a name and arguments, got {str(call)[:200]}.")
    return inner["name"], inner.get("arguments"), call.get("id")
