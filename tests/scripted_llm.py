"""A model double that says and calls what a test has written. No engine, no jax.

    ScriptedLLM("Hello.", [("add", {"a": 1, "b": 2})], ("Let me see.", [("add", {...})]), lambda messages: "...")

Each turn is a text, calls, both, or a function of the conversation that returns one of these; the last is repeated.
"""

import json
from types import SimpleNamespace

from gemworks import Completion
from gemworks.engine.types import Timings
from gemworks.text.toolcalls import Call


class ScriptedLLM:
    """What LLM has of `stream`, and of `prepare` and `submit` for text; `asked` has every request."""

    def __init__(self, *turns, context=4096, is_chat=True, tokenizer=None):
        self.turns, self.context, self.is_chat, self.tokenizer = list(turns), context, is_chat, tokenizer
        self.asked, self.closed = [], 0

    def stream(self, messages, **told):
        self.asked.append((messages, told))
        return self._chunks(self._turn(messages, told))

    def prepare(self, messages, **told):
        self.asked.append((messages, told))
        return SimpleNamespace(completion=self._turn(messages, told))

    def submit(self, prepared):
        return SimpleNamespace(last=lambda: prepared.completion)

    def close(self):
        self.closed += 1

    def _turn(self, messages, told):
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if callable(turn):
            turn = turn(messages)
        text, calls = turn if isinstance(turn, tuple) else (turn, []) if isinstance(turn, str) else ("", turn)
        if not told.get("tools") or told.get("tool_choice") == "none":
            calls = []
        made = tuple(Call(name=name, text=json.dumps(arguments)) for name, arguments in calls)
        ids = list(range(len(text)))
        ended = "tool_calls" if made else "stop"
        timings = Timings(load_s=1.0, prefill_s=0.5, decode_s=1.0, prefill_tokens=5, decode_tokens=5)
        return Completion(text=text, token_ids=ids, tool_calls=made, finish_reason=ended, timings=timings)

    def _chunks(self, completion):
        for letter in completion.text:
            yield SimpleNamespace(text=letter, calls=(), finish_reason=None, completion=None)
        yield SimpleNamespace(text="", calls=(), finish_reason=completion.finish_reason, completion=completion)
