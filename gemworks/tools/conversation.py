"""A model and its tools in turns: the model calls, the calls run, their results go back to it, until it answers.

    messages = [{"role": "user", "content": "What is 2 ** 100?"}]
    for event in converse(llm, messages, session):
        ...                                                # text, calls, result, and at last end

`messages` grows by what was said, in OpenAI's form: append the next question and ask again.

A result is data. It is shown to the model as a tool's words and searched for nothing; what the model makes of it is a
new call, under the session's rules like any other. Tool names, rules, limits and roles are read from the session alone,
never from a message.

Not here: how calls are written and read in a prompt (the LLM's work), asking and showing (cli/).
"""

import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemworks.errors import ConfigError
from gemworks.tools.session import CallResult, Session

Kind = Literal["text", "calls", "result", "end"]
Why = Literal["answered", "rounds", "stopped"]

# A result of the sandbox's 1 MiB would be some 300,000 tokens; this is about 4,000.
_RESULT_CHARS = 16_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened.

    text    `text` is a piece of what the model says.
    calls   The model asks for `calls` (OpenAI's form), which are about to be checked and run.
    result  `call` ended as `result`; one event a call, in the order of `calls`.
    end     It is a person's turn. `completion` is the model's last; `why` is answered, rounds (the last answer was made
            without tools, as all rounds were used up) or stopped.

    round: how many times results went back to the model before this.
    """

    kind: Kind
    round: int
    text: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    call: Mapping[str, Any] | None = None
    result: CallResult | None = None
    completion: Any = None
    why: Why | None = None


def converse(
    llm: Any,
    messages: list[dict[str, Any]],
    session: Session,
    *,
    rounds: int = 8,
    result_chars: int = _RESULT_CHARS,
    tool_choice: Any = "auto",
    stop: threading.Event | None = None,
    **sampling: Any,
) -> Iterator[Event]:
    """Yield what happens until the model has answered the last of `messages`, to which all that is said is appended.

    llm: gemworks.LLM, or what has its `stream`; `sampling` is its. rounds: how often results may go back; after that
    the model answers without tools. tool_choice is for the first turn: "required" or a named tool would never end.
    result_chars: a longer result is cut, and says so. Setting `stop` in another thread, or in a signal's handler, ends
    the calls that run, and the conversation after them. Closing the iterator keeps what was said until then; every
    call in `messages` has a result there, whatever happens.

    Raises what the LLM raises (RequestError, CapacityError), and ConfigError for rounds below 0.
    """
    if rounds < 0:
        raise ConfigError(f"rounds must be 0 or more, got {rounds}.")
    return _turns(llm, messages, session, rounds, result_chars, tool_choice, stop or threading.Event(), sampling)


def _turns(
    llm: Any,
    messages: list[dict[str, Any]],
    session: Session,
    rounds: int,
    result_chars: int,
    tool_choice: Any,
    stop: threading.Event,
    sampling: Mapping[str, Any],
) -> Iterator[Event]:
    tools = session.schemas()
    for number in range(rounds + 1):
        is_last = number == rounds
        choice = "none" if is_last else tool_choice if number == 0 else "auto"
        told = {"tools": tools, "tool_choice": choice} if tools else {}
        completion = yield from _speech(llm.stream(list(messages), **told, **sampling), messages, number)
        calls = () if is_last or not tools else tuple(call.told() for call in completion.tool_calls)
        turn: dict[str, Any] = {"role": "assistant", "content": completion.text}
        if not calls:
            messages.append(turn)
            why = "rounds" if is_last and tools and rounds else "answered"
            yield Event(kind="end", round=number, completion=completion, why=why)
            return
        turn |= {"content": completion.text or None, "tool_calls": [dict(call) for call in calls]}
        results: list[CallResult] = []
        try:
            yield Event(kind="calls", round=number, calls=calls)
            results = session.call_all(calls, stop=stop)
        finally:
            messages += [turn, *_told(calls, results, result_chars)]
        for call, result in zip(calls, results, strict=True):
            yield Event(kind="result", round=number, call=call, result=result)
        if stop.is_set():
            yield Event(kind="end", round=number, completion=completion, why="stopped")
            return


def _speech(chunks: Any, messages: list[dict[str, Any]], number: int) -> Generator[Event, None, Any]:
    """Pass on what the model says; returns its Completion. Of words that are broken off a message is made here."""
    text, completion = "", None
    try:
        for chunk in chunks:
            text += chunk.text
            completion = chunk.completion or completion
            if chunk.text:
                yield Event(kind="text", round=number, text=chunk.text)
    except BaseException:  # GeneratorExit, KeyboardInterrupt
        if text:
            messages.append({"role": "assistant", "content": text})
        raise
    finally:
        chunks.close()
    return completion


def _told(
    calls: tuple[Mapping[str, Any], ...], results: list[CallResult], result_chars: int
) -> Iterator[dict[str, Any]]:
    """The messages that tell results; of calls that were broken off, that they were."""
    for number, call in enumerate(calls):
        name = call["function"]["name"]
        text = results[number].text if number < len(results) else f"error: {name}: it was stopped; it may have run"
        if len(text) > result_chars:
            text = f"{text[:result_chars]}\n[cut: {result_chars:,} of {len(text):,} characters]"
        yield {"role": "tool", "tool_call_id": call["id"], "name": name, "content": text}
