"""Tools: what a model is told of each, and how each is run.

    tools = Toolbox([add, search])                    functions with type hints and docstrings, run in the sandbox
    tools = Toolbox.from_file("tools.py")             every public function of a file, which is never run here
    tools.add(search, sandbox=Policy(readable=("~/notes",)), bind={"folder": "~/notes"})
    tools.add_server("files", ["/usr/bin/files-mcp"]) the tools of an MCP server

A toolbox gives no rights: calls go through a session with access rules, see session.py.
"""

import inspect
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.errors import ConfigError, StorageError
from gemworks.tools import declare
from gemworks.tools.output import clean, clean_text
from gemworks.tools.sandbox.policy import Policy
from gemworks.tools.sandbox.runner import Code, Outcome, Sandbox
from gemworks.tools.validate import Schema

if TYPE_CHECKING:
    from gemworks.tools.access import Access
    from gemworks.tools.audit import AuditLog
    from gemworks.tools.session import Ask, Limits, Session

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MAX_SOURCE_BYTES = 1 << 20
_MAX_DESCRIPTION = 4000
_SHUT_IN = Policy()
_SERVER = Policy(children=True, tasks=64)
_INSTALL = 'pip install "gemworks[tools]"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One tool. `run` takes arguments that were checked, and an event that ends it when it is set, and returns an
    Outcome; `cost` is what one call counts for.

    `where` says what runs it: the means of the sandbox, "this process", or the server's name.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    returns: dict[str, Any] | None
    run: "Run"
    arguments_schema: Schema
    result_schema: Schema | None
    cost: float = 1.0
    where: str = "this process"

    def schema(self) -> dict[str, Any]:
        """The declaration in the form that OpenAI's API takes tools in."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


Run = Callable[[dict[str, Any], threading.Event], Outcome]


def make_tool(told: Mapping[str, Any], run: Run, **more: Any) -> Tool:
    """A tool from a declaration (name, description, parameters, returns), which may come from anybody: it is
    checked."""
    name, parameters, returns = told.get("name"), told.get("parameters"), told.get("returns")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"a tool's name must be 1 to 64 letters, digits, _ or -, got {str(name)[:80]!r}.")
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise ConfigError(f"{name}: a tool's parameters must be a JSON schema of type object.")
    if returns is not None and not isinstance(returns, dict):
        raise ConfigError(f"{name}: the schema of what a tool returns must be an object.")
    return Tool(
        name=name,
        description=clean_text(str(told.get("description") or ""))[:_MAX_DESCRIPTION],
        parameters=clean(parameters),
        returns=returns,
        run=run,
        arguments_schema=Schema(parameters, name),
        result_schema=None if returns is None else Schema(returns, name),
        **more,
    )


class Toolbox:
    """A set of tools by name. Adding one checks everything that can be checked before a call."""

    def __init__(self, functions: Iterable[Callable[..., Any]] = (), *, sandbox: Policy | None = _SHUT_IN):
        """`sandbox` is for all of `functions`, and for those added later without one of their own."""
        self.tools: dict[str, Tool] = {}
        self._sandbox = sandbox
        self._sandboxes: dict[Policy, Sandbox] = {}
        self._servers: list[Any] = []
        for function in functions:
            self.add(function)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, sandbox: Policy = _SHUT_IN, bind: Mapping[str, Any] | None = None
    ) -> "Toolbox":
        """A toolbox of the public functions of a Python file; see `add_file`."""
        box = cls(sandbox=sandbox)
        box.add_file(path, bind=bind)
        return box

    def add_file(
        self,
        path: str | os.PathLike[str],
        *,
        sandbox: Policy | None = None,
        bind: Mapping[str, Any] | None = None,
    ) -> list[Tool]:
        """Add the public functions of a Python file. Its code runs in the sandbox only, when it is read as when it is
        called.

        sandbox: the toolbox's own by default; a file is never run outside one. `bind` gives arguments that the model
        neither sees nor chooses, by name, to every function that has them.
        """
        file, policy = Path(path), sandbox or self._sandbox or _SHUT_IN
        try:
            source = file.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{file}: the tools cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: tools must be Python in UTF-8: {error}.") from error
        added = []
        for told in self._described(source, file, policy, bind or {}):
            code = Code(source, told["name"], module=_module_name(file), file=str(file), convert=bool(told["convert"]))
            here = {name: value for name, value in (bind or {}).items() if name in told["bound"]}
            added.append(self._add_code(told, code, policy, here, 1.0))
        return added

    def add(
        self,
        function: Callable[..., Any],
        *,
        sandbox: Policy | str | None = "",
        bind: Mapping[str, Any] | None = None,
        cost: float = 1.0,
    ) -> Tool:
        """Add a function. `sandbox=None` runs it in this process with all its rights: only for code of your own.

        `bind` gives arguments that the model neither sees nor chooses. In the sandbox a function is run from its file's
        source, so it must be defined at the top level of a file and must not rely on what this process did since.
        """
        policy = self._sandbox if isinstance(sandbox, str) else sandbox
        bound = dict(bind or {})
        if unknown := sorted(set(bound) - set(inspect.signature(function).parameters)):
            raise ConfigError(f"{function.__name__}: has no parameter {', '.join(unknown)} to bind.")
        try:
            told = declare.describe(function, tuple(bound))
        except declare.WrongDeclaration as error:
            raise ConfigError(str(error)) from error
        except ImportError as error:
            raise ConfigError(f"tools need {error.name}, which is not installed: {_INSTALL}") from error
        if policy is None:
            return self._put(make_tool(told, _here(function, bound, told["convert"]), cost=cost))
        return self._add_code(told, _code_of(function, told["convert"]), policy, bound, cost)

    def add_server(
        self,
        name: str,
        command: list[str],
        *,
        sandbox: Policy | None = _SERVER,
        cost: float = 1.0,
        call_s: float = 60.0,
    ) -> list[Tool]:
        """Start an MCP server on stdio and add its tools as NAME_TOOL. `close` ends it.

        The server runs in the sandbox too; `sandbox=None` gives it this user's rights. A call is given up after
        `call_s`.
        """
        from gemworks.tools.servers import Server

        box = self._sandbox_of(sandbox) if sandbox is not None else None
        server = Server(name, command, box, call_s=call_s)
        self._servers.append(server)
        return [self._put(tool) for tool in server.tools(cost)]

    def session(
        self,
        role: str,
        access: "Access",
        *,
        ask: "Ask | None" = None,
        limits: "Limits | None" = None,
        audit: "AuditLog | None" = None,
    ) -> "Session":
        """Calls on behalf of a role, under rules that cannot change while it lasts."""
        from gemworks.tools.session import Limits, Session

        return Session(self, role, access, ask=ask, limits=limits or Limits(), audit=audit)

    def schemas(self) -> list[dict[str, Any]]:
        """All declarations in OpenAI's form. A session's are those its role may use."""
        return [tool.schema() for tool in self.tools.values()]

    def near(self, name: str) -> list[str]:
        """Names of tools like `name`, the nearest first."""
        return get_close_matches(name, self.tools, n=3)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def __enter__(self) -> "Toolbox":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _described(self, source: str, file: Path, policy: Policy, bind: Mapping[str, Any]) -> list[dict[str, Any]]:
        # Reading takes pydantic, a moment and nothing of what the policy may give to calls.
        reading = Policy(packages=True, tmp_bytes=policy.tmp_bytes, filter_syscalls=policy.filter_syscalls)
        code = Code(source, "", module=_module_name(file), file=str(file))
        outcome = self._sandbox_of(reading).describe(code, tuple(bind))
        if outcome.status != "ok":
            raise ConfigError(f"{file}: its tools cannot be read. {outcome.error.removeprefix('WrongDeclaration: ')}")
        told = outcome.value
        wanted = {"name", "description", "parameters", "returns", "convert", "bound"}
        if not isinstance(told, list) or not all(isinstance(one, dict) and set(one) == wanted for one in told):
            raise ConfigError(f"{file}: what its code says of its functions is not a list of declarations.")
        if not told:
            raise ConfigError(f"{file}: has no public function. A tool is a def at the top level, without leading _.")
        return told

    def _add_code(
        self, told: Mapping[str, Any], code: Code, policy: Policy, bound: Mapping[str, Any], cost: float
    ) -> Tool:
        if code.convert and not policy.packages:
            policy = replace(policy, packages=True)  # pydantic turns the values
        sandbox = self._sandbox_of(policy)
        return self._put(
            make_tool(
                told,
                lambda values, stop: sandbox.call(code, values, bound, stop=stop),
                cost=cost,
                where=str(sandbox.means),
            )
        )

    def _sandbox_of(self, policy: Policy) -> Sandbox:
        if policy not in self._sandboxes:
            self._sandboxes[policy] = Sandbox(policy)
        return self._sandboxes[policy]

    def _put(self, tool: Tool) -> Tool:
        if tool.name in self.tools:
            raise ConfigError(f"there is a tool {tool.name} already; names must differ.")
        self.tools[tool.name] = tool
        return tool


def _module_name(file: Path) -> str:
    """A module name for a file, none that is taken: a tools.py shall not pass for another module in its child."""
    stem = re.sub(r"\W", "_", file.stem) or "tool"
    return f"tools_of_{stem}" if stem in sys.stdlib_module_names or stem == "gemworks" else stem


def _code_of(function: Callable[..., Any], convert: bool) -> Code:
    """The source that defines a function, as its file is now."""
    name = function.__qualname__
    advice = "Define it at the top level of a file, or add it with sandbox=None to run it in this process."
    if not name.isidentifier():
        raise ConfigError(f"{name} cannot be run in the sandbox: it is defined inside something else.\n{advice}")
    try:
        file = inspect.getsourcefile(function)
        source = Path(file).read_text(encoding="utf-8") if file else ""
    except (TypeError, OSError):
        file, source = None, ""
    if not file or not source:
        raise ConfigError(f"{name} cannot be run in the sandbox: its source is not in a file.\n{advice}")
    if len(source.encode()) > _MAX_SOURCE_BYTES:
        raise ConfigError(f"{file}: a tool's file may have {_MAX_SOURCE_BYTES:,} bytes, it is larger.")
    module = function.__module__
    return Code(source, name, module="tool" if module == "__main__" else module, file=file, convert=convert)


def _here(function: Callable[..., Any], bound: dict[str, Any], convert: bool) -> Run:
    """Runs a function in this process. An exception is its failure; nothing limits or stops it."""

    def run(values: dict[str, Any], _stop: threading.Event) -> Outcome:
        start = time.monotonic()
        try:
            given = declare.converted(function, values) if convert else values
            result = function(**given, **bound)
            if inspect.isawaitable(result):
                import asyncio

                result = asyncio.run(_awaited(result))
            result = declare.dumped(function, result) if convert else result
        except declare.WrongValue as error:
            return Outcome(status="invalid", error=str(error))
        except Exception as error:
            text = clean_text(f"{type(error).__name__}: {error}")[:_MAX_DESCRIPTION]
            return Outcome(status="failed", error=text, wall_s=time.monotonic() - start)
        return Outcome(status="ok", value=result, wall_s=time.monotonic() - start)

    return run


async def _awaited(result: Any) -> Any:
    return await result
