"""Tools that a model may call: declared, allowed, checked, shut in, written down. docs/tools.md tells how to use it.

    declare.py   from a function to schemas         access.py    who may call what
    toolbox.py   the set of tools                   audit.py     a log that tells when it was changed
    session.py   one role's calls                   sandbox/     the child process that runs a tool's code
    servers.py   MCP servers as tools               examples/    tools to begin with
    conversation.py   a model and its tools in turns, until it answers

Not here: how calls are written and read in a prompt (text/), and asking in the terminal (cli/).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemworks.tools.access import (
        Access,
        Rule,
        allow,
        ask,
        at_least,
        at_most,
        below,
        deny,
        matches,
        one_of,
        read_rules,
    )
    from gemworks.tools.audit import AuditLog
    from gemworks.tools.conversation import Event, converse
    from gemworks.tools.sandbox.means import probe
    from gemworks.tools.sandbox.policy import Policy
    from gemworks.tools.sandbox.runner import Sandbox
    from gemworks.tools.session import CallResult, Limits, Question, Session
    from gemworks.tools.toolbox import Tool, Toolbox

__all__ = [
    "Access",
    "AuditLog",
    "CallResult",
    "Event",
    "Limits",
    "Policy",
    "Question",
    "Rule",
    "Sandbox",
    "Session",
    "Tool",
    "Toolbox",
    "allow",
    "ask",
    "at_least",
    "at_most",
    "below",
    "converse",
    "deny",
    "doctor_rows",
    "matches",
    "one_of",
    "probe",
    "read_rules",
]


def __getattr__(name: str) -> Any:
    # On first use: a tool's child imports this package before every call, and must start fast.
    if name not in __all__:
        raise AttributeError(f"module gemworks.tools has no attribute {name}")
    from gemworks.tools import access, audit, conversation, session, toolbox
    from gemworks.tools.sandbox import means, policy, runner

    homes = (access, audit, conversation, session, toolbox, means, policy, runner)
    return next(getattr(home, name) for home in homes if hasattr(home, name))


def doctor_rows() -> list[tuple[str, str]]:
    """What tools can be shut in with on this machine, for `gemworks doctor`: (name, text), one row a line."""
    from gemworks.tools.sandbox import means

    return means.probe()
