"""Calls of functions in a conversation: told to a model, held to their declarations, found in what it writes.

    declared.py   what a caller declares and allows        forms.py control_forms.py     grammars of answers with calls
    history.py    conversations with calls as plain ones   reader.py control_reader.py   calls in a text, as it comes
    control.py    the same with FunctionGemma's tokens     values.py collected.py        what both readers need

Not here: which message is whose (llm), HTTP (server), running a call (tools). No jax here.
"""

from gemworks.text.toolcalls.call import Call, CallDelta, PartialCall
from gemworks.text.toolcalls.declared import STYLES, Function, Style, Toolset, toolset_of
from gemworks.text.toolcalls.reader import CallReader, read_calls

__all__ = [
    "STYLES",
    "Call",
    "CallDelta",
    "CallReader",
    "Function",
    "PartialCall",
    "Style",
    "Toolset",
    "read_calls",
    "toolset_of",
]
