"""The events of a response that is streamed.

response.created, response.in_progress
output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done, output_item.done
output_item.added, function_call_arguments.delta ..., function_call_arguments.done, output_item.done     a call each
response.completed or response.incomplete
"""

from typing import TYPE_CHECKING, Any

from gemworks.server.errors import openai_error
from gemworks.server.openai import shapes
from gemworks.server.openai.response_output import status_of

if TYPE_CHECKING:
    from gemworks.llm.answers import Chunk, Completion
    from gemworks.server.openai.responses import MadeResponse
    from gemworks.text.toolcalls import CallDelta


class Events:
    """Writes the events of one response, numbered."""

    def __init__(self, made: "MadeResponse"):
        self._made = made
        self._number = -1
        self._place = f'"item_id":"{made.output.message_id}","output_index":0,"content_index":0'
        self._has_message = False
        self._calls: list[dict[str, Any]] = []  # that have begun

    def opening(self) -> bytes:
        """The events before the first word; the message begins with it where there may be none."""
        state = self._made.told("in_progress")
        told = self._event("response.created", response=state) + self._event("response.in_progress", response=state)
        return told if self._made.may_call else told + self._message()

    def pieces(self, chunk: "Chunk") -> bytes:
        """The events of a chunk, none where it tells nothing."""
        told = b""
        if chunk.text or (chunk.logprobs and self._made.tells_logprobs and not self._calls and not chunk.calls):
            told += (b"" if self._has_message else self._message()) + self._delta(chunk)
        return told + b"".join(self._call(delta) for delta in chunk.calls)

    def closing(self, answer: "Completion") -> bytes:
        """The events after the last word; the response is kept."""
        made, output = self._made, self._made.output
        whole = made.end(answer)
        told = b"" if self._has_message or self._calls else self._message()
        if self._has_message:
            at = self._at()
            told += self._event("response.output_text.done", **at, text=answer.text, logprobs=made.logprobs(answer))
            told += self._event("response.content_part.done", **at, part=output.part(answer))
            told += self._event("response.output_item.done", output_index=0, item=output.message(answer))
        for item in output.calls(answer):
            told += self._call_done(item)
        return told + self._event(f"response.{status_of(answer)}", response=whole)

    def failed(self, error: Exception, request_id: str) -> bytes:
        """The events that end a response that could not be finished."""
        told = openai_error(error, request_id=request_id).body["error"]
        code, message = told["code"] or "server_error", told["message"]
        whole = self._made.told("failed", error={"code": code, "message": message})
        return self._event("error", code=code, message=message, param=told["param"]) + self._event(
            "response.failed", response=whole
        )

    def _message(self) -> bytes:
        self._has_message = True
        output = self._made.output
        return self._event("response.output_item.added", output_index=0, item=output.message(None)) + self._event(
            "response.content_part.added", **self._at(), part=output.part(None)
        )

    def _delta(self, chunk: "Chunk") -> bytes:
        self._number += 1
        told = shapes.dumps(self._made.logprobs(chunk)) if chunk.logprobs else "[]"
        return (
            f'event: response.output_text.delta\ndata: {{"type":"response.output_text.delta",{self._place},'
            f'"delta":{shapes.escape(chunk.text)},"logprobs":{told},"sequence_number":{self._number}}}\n\n'
        ).encode()

    def _call(self, delta: "CallDelta") -> bytes:
        """The event of a piece of a call."""
        if delta.name is not None:
            item = self._made.output.call(delta.index, delta.id, delta.name, "", "in_progress")
            self._calls.append(item)
            return self._event("response.output_item.added", output_index=self._index(item), item=item)
        item = self._calls[delta.index]
        at = {"item_id": item["id"], "output_index": self._index(item)}
        return self._event("response.function_call_arguments.delta", **at, delta=delta.text)

    def _call_done(self, item: dict[str, Any]) -> bytes:
        index = next(i for i, begun in enumerate(self._calls) if begun["id"] == item["id"]) + self._has_message
        at = {"item_id": item["id"], "output_index": index}
        told = self._event(
            "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
        )
        return told + self._event("response.output_item.done", output_index=index, item=item)

    def _index(self, item: dict[str, Any]) -> int:
        return self._calls.index(item) + self._has_message

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._made.output.message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **told: Any) -> bytes:
        self._number += 1
        return shapes.event(shapes.dumps({"type": kind, **told, "sequence_number": self._number}), kind)
