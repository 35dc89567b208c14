r"""A conversation as token ids with what is learned of it: the ids are serving's own, from the same code.

    <bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n
                                                                   ------ ------------
Learned is what the model says itself when it is served: each of its turns after the header, up to and with
<end_of_turn>. The header and the newline after <end_of_turn> are put there by the template, so nobody learns them.

Turns are told by the control tokens, which no text can become: a user who types `<start_of_turn>` has typed fifteen
characters. Calls and results of tools are words of such turns, in the style that serving has for the model.

Not here: FunctionGemma's own way to call, in which a turn of the model goes on after a tool's result.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemworks.data.chat import BadChat, is_learned
from gemworks.errors import RequestError
from gemworks.tokenizer.chat import render_chat

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

TOOL_STYLES = ("python", "json")


class Rendered(NamedTuple):
    """Ids (int32) of a conversation from <bos> to its last newline, and which of them the model says (bool)."""

    ids: np.ndarray
    learned: np.ndarray


def render(
    tokenizer: "Tokenizer",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    after: int = 0,
    tool_style: str | None = None,
) -> Rendered:
    """Return the conversation's ids and what is learned of them: the model's turns from message number `after` on.

    tool_style: python or json; None is what serving takes for the model. Raises BadChat where serving could not render
    it, or would render it so that its answers begin with other ids.
    """
    wanted = [i >= after and is_learned(one) for i, one in enumerate(messages) if _is_models(one)]
    try:
        said = _in_words(tokenizer, messages, tools, tool_style)
        ids = render_chat(tokenizer, said, add_generation_prompt=False)
    except RequestError as error:
        raise BadChat("cannot be rendered", str(error)) from error
    start, end = tokenizer.chat_ids
    header = [start, *tokenizer.encode("model\n")]
    learned, at = np.zeros(len(ids), bool), 0
    turns = [message for message in said if message["role"] != "system"]  # that is the beginning of the user's turn
    assert sum(map(_is_models, turns)) == len(wanted), "every message of the model is a turn of its own"
    for message in turns:
        at = ids.index(start, at)
        stop = ids.index(end, at) + 1
        if _is_models(message) and wanted.pop(0):
            first = at + len(header)
            if ids[at:first] != header:
                raise BadChat(
                    "cannot be rendered",
                    "an answer's first characters are one token with the newline before it, which serving never makes",
                )
            learned[first:stop] = True
        at = stop
    return Rendered(np.array(ids, np.int32), learned)


def _is_models(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("assistant", "model")


def _in_words(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], style: str | None
) -> Sequence[Mapping[str, Any]]:
    """The conversation as system, user and assistant messages, as serving makes it of one with tools."""
    from gemworks.text.toolcalls.control import ControlTokens
    from gemworks.text.toolcalls.declared import toolset_of
    from gemworks.text.toolcalls.history import instructions, plain_messages, speaks_of_calls

    if not tools and not speaks_of_calls(messages):
        return messages
    if style is None and ControlTokens.of(tokenizer) is not None:
        raise BadChat(
            "cannot be rendered",
            "tools: FunctionGemma's own way to call is not learned yet; choose --tool-style python or json",
        )
    chosen: Any = style or "python"
    toolset = toolset_of(tools, None, None, chosen)
    return plain_messages(messages, chosen, "" if toolset is None else instructions(toolset))
