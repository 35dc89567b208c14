"""What a request says of calls: the functions, how they are told, and what its answers are held to and read by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemworks.errors import RequestError
from gemworks.text.toolcalls import STYLES, CallReader, Style, Toolset, toolset_of
from gemworks.text.toolcalls.control import ControlTokens, render_control
from gemworks.text.toolcalls.control_reader import ControlReader
from gemworks.text.toolcalls.history import instructions, plain_messages, speaks_of_calls

if TYPE_CHECKING:
    from gemworks.llm.structured import Form
    from gemworks.text.grammar import Grammar
    from gemworks.tokenizer.tokenizer import Tokenizer

Reader = CallReader | ControlReader

# Keywords of a call that are about calls.
KEYWORDS = ("tools", "tool_choice", "parallel_tool_calls", "tool_style")


@dataclass(frozen=True, slots=True)
class Calling:
    """Calls of one request. toolset: None where it declares no function. tokens: FunctionGemma's, where it has them."""

    style: Style
    toolset: Toolset | None = None
    tokens: ControlTokens | None = None

    @property
    def may_call(self) -> bool:
        """Whether an answer may be a call."""
        return self.toolset is not None and bool(self.toolset.callable)

    def plain(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return a conversation without roles and fields that Gemma does not have. Raises RequestError."""
        told = "" if self.toolset is None else instructions(self.toolset)
        if not told and not speaks_of_calls(messages):
            return list(messages)
        return plain_messages(messages, self.style, told)

    def control_ids(self, tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
        """Return the ids of a conversation in FunctionGemma's style, None in another."""
        if self.style != "functiongemma" or self.tokens is None:
            return None
        return render_control(tokenizer, self.tokens, messages, self.toolset)

    def grammar(self, form: "Form | None") -> "Grammar | None":
        """Return what an answer is held to, `form` where it may not call. Raises RequestError."""
        if self.toolset is None or not self.may_call:
            return None if form is None else form.grammar
        from gemworks.text.toolcalls.forms import calls_grammar

        return calls_grammar(self.toolset, None if form is None else form.grammar, self.tokens)

    def is_free(self, form: "Form | None") -> bool:
        """Whether an answer may be any text until a call begins."""
        return self.may_call and form is None and self.toolset is not None and not self.toolset.is_required

    @property
    def names(self) -> list[str]:
        """Of the functions that may be called."""
        return [] if self.toolset is None else [one.name for one in self.toolset.callable]

    def reader(self, form: "Form | None") -> Reader | None:
        """Return what reads one answer; None where it is text alone."""
        if self.toolset is None or not self.may_call:
            return None
        if self.style == "functiongemma":
            return ControlReader(self.names)
        # An answer of a form may be an object with a name: where a call may not be one, it is none.
        return CallReader(self.names, eager=True, objects=form is None)

    @property
    def begins(self) -> ControlTokens | None:
        """The tokens that begin calls, where tokens do."""
        return self.tokens if self.style == "functiongemma" else None

    @property
    def marks(self) -> Mapping[int, str]:
        """Control tokens that the reader is told of, and as what."""
        return self.begins.marks if self.begins is not None else {}


def calling_of(tokens: ControlTokens | None, told: Mapping[str, Any]) -> Calling:
    """Return what the keywords KEYWORDS say; `tokens` are the model's. Raises RequestError.

    Without tool_style a model with FunctionGemma's tokens is asked in its own style, others in Python's.
    """
    style = told.get("tool_style")
    if style is None:
        style = "functiongemma" if tokens is not None else "python"
    if style not in STYLES:
        raise RequestError(f"tool_style must be one of {', '.join(STYLES)}, got {style!r:.60}.")
    if style == "functiongemma" and tokens is None:
        raise RequestError(
            "tool_style functiongemma needs FunctionGemma's control tokens, and this vocabulary has none.\n"
            "Use python or json, or leave it out."
        )
    toolset = toolset_of(told.get("tools"), told.get("tool_choice"), told.get("parallel_tool_calls"), style)
    return Calling(style, toolset, tokens)
