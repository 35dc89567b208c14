"""Showing one answer: streamed, as an object, and how long it took."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any

from gemworks.cli import console

Notice = Callable[[Any], None]


def stream(chunks: Any, notice: Notice | None = None) -> Any:
    """Write an answer to stdout as it comes, and a line end; return its Completion.

    Until the first words a spinner turns in a terminal. `notice` hears of every event of a conversation with tools;
    what the model said before its calls ends with a line end.
    """
    last, is_within_line = None, False
    with console.waiting() as begun:
        for chunk in chunks:
            if chunk.text or chunk.completion or notice is not None:
                begun()
            if notice is not None and not chunk.text and not chunk.completion:
                console.write("\n" * is_within_line)
                is_within_line = False
                notice(chunk)
            elif chunk.text:
                console.write(chunk.text)
                is_within_line = not chunk.text.endswith("\n")
            last = chunk
    console.write("\n")
    if notice is not None and last is not None:
        notice(last)
    return None if last is None else last.completion


def stream_until_interrupted(
    chunks: Any, notice: Notice | None = None, on_stop: Callable[[], None] | None = None
) -> Any:
    """`stream`, but Ctrl-C ends the answer and not the program; returns None then.

    While the prompt is computed Ctrl-C breaks in at once (the engine starts its cache afresh). After the first words
    the answer is closed between two tokens, so that the next turn goes on from the cache; a second Ctrl-C breaks in.
    `on_stop` is called with the first: it ends tools that run.
    """
    with _Interrupts(on_stop) as interrupts:
        try:
            completion = stream(interrupts.watch(chunks), notice)
        except KeyboardInterrupt:
            console.write("\n")
            return None
        finally:
            chunks.close()
    return None if interrupts.asked else completion


class _Interrupts:
    """Turns SIGINT into a flag while words are coming."""

    def __init__(self, on_stop: Callable[[], None] | None = None):
        self.asked = False
        self._on_stop = on_stop
        self._begun = False
        self._before: Any = None

    def __enter__(self) -> "_Interrupts":
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def watch(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            self._begun = True
            yield chunk
            if self.asked:
                return

    def _on_interrupt(self, *_signal: object) -> None:
        if self.asked or not self._begun:
            raise KeyboardInterrupt
        self.asked = True
        if self._on_stop is not None:
            self._on_stop()


def as_json(model: str, completion: Any) -> dict[str, Any]:
    """The object `run --json` prints."""
    timings = completion.timings
    return {
        "model": model,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "prompt_tokens": completion.prompt_tokens,
        "image_tokens": completion.image_tokens,
        "completion_tokens": completion.completion_tokens,
        "finish_reason": completion.finish_reason,
        "stop_string": completion.stop_string,
        "timings": {
            **dataclasses.asdict(timings),
            "encode_s": completion.encode_s,
            "prefill_per_second": timings.prefill_per_second,
            "decode_per_second": timings.decode_per_second,
        },
    }


def timing_lines(completion: Any) -> list[str]:
    """What --verbose tells about an answer, one line a phase."""
    timings = completion.timings
    cached = f" ({timings.cached_tokens:,} more were cached)" if timings.cached_tokens else ""
    compiled = getattr(timings, "compile_s", 0.0)
    lines = [f"load     {timings.load_s:8.2f} s"]
    lines += [f"compile  {compiled:8.2f} s   once for these shapes"] if compiled >= 0.005 else []
    if completion.image_tokens:
        seen = "" if completion.encode_s else "   (encoded before)"
        lines.append(f"images   {completion.encode_s:8.2f} s   {completion.image_tokens:6,} tokens{seen}")
    lines.append(
        f"prefill  {timings.prefill_s:8.2f} s   {timings.prefill_tokens:6,} tokens   "
        f"{timings.prefill_per_second:8.1f} tokens/s{cached}"
    )
    lines.append(
        f"decode   {timings.decode_s:8.2f} s   {timings.decode_tokens:6,} tokens   "
        f"{timings.decode_per_second:8.1f} tokens/s"
    )
    return lines


def ending_note(completion: Any, context: int) -> str | None:
    """Why an answer ended before the model meant it to, or None if it did not."""
    if completion.finish_reason != "length":
        return None
    used = completion.prompt_tokens + completion.completion_tokens
    if used >= context:
        return f"[the context of {context:,} tokens is full]"
    return f"[cut after {completion.completion_tokens:,} tokens: max_tokens]"
