"""What a response holds: a message, and the calls of functions beside it, each an item with an id."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemworks.server.openai import shapes

if TYPE_CHECKING:
    from gemworks.llm.answers import Completion

_TOOL_FIELDS = ("name", "description", "parameters", "strict")


class Output:
    """The items of one response. logprobs: log-probabilities of an answer, as they are told."""

    def __init__(self, logprobs: "Callable[[Completion | None], list[dict[str, Any]]]"):
        self._logprobs = logprobs
        self.message_id = shapes.new_id("msg_")
        self._call_ids: defaultdict[int, str] = defaultdict(lambda: shapes.new_id("fc_"))

    def items(self, answer: "Completion") -> list[dict[str, Any]]:
        """The items of a finished answer: its text, unless it only calls, then its calls."""
        calls = self.calls(answer)
        return [*([self.message(answer)] if answer.text or not calls else ()), *calls]

    def message(self, answer: "Completion | None") -> dict[str, Any]:
        """The message; None: it has not begun."""
        status = "in_progress" if answer is None else status_of(answer)
        content = [] if answer is None else [self.part(answer)]
        return {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def part(self, answer: "Completion | None") -> dict[str, Any]:
        """The text of the message."""
        text = "" if answer is None else answer.text
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(answer)}

    def calls(self, answer: "Completion") -> list[dict[str, Any]]:
        """The calls; one that the answer was cut in is incomplete, and its arguments end in the middle."""
        told = [self.call(i, call.id, call.name, call.text, "completed") for i, call in enumerate(answer.tool_calls)]
        if (cut := answer.partial_call) is not None:
            told.append(self.call(len(told), cut.id, cut.name, cut.text, "incomplete"))
        return told

    def call(self, index: int, call_id: str | None, name: str | None, arguments: str, status: str) -> dict[str, Any]:
        """Call number `index`."""
        told = {"id": self._call_ids[index], "type": "function_call", "status": status}
        return told | {"call_id": call_id, "name": name, "arguments": arguments}


def status_of(answer: "Completion") -> str:
    """Return the status of a finished answer."""
    return "incomplete" if answer.finish_reason == "length" else "completed"


def told_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a declared function as a response repeats it: all fields on one level."""
    inside = tool.get("function", tool)
    told = {name: inside.get(name) for name in _TOOL_FIELDS}
    return {"type": "function", **told, "parameters": told["parameters"] or {}, "strict": told["strict"] is not False}
