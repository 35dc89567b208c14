"""A conversation with one model: its turns so far, its system prompt, and how it samples. No terminal here."""

from collections.abc import Iterator, Mapping
from typing import Any

from gemworks.errors import ConfigError, GemworksError
from gemworks.weights.modelfile import Modelfile

Content = str | list[dict[str, Any]]  # a text, or parts of which some are pictures


class Session:
    """What `run` asks and the REPL changes. A turn is kept once the model has said something.

    llm: gemworks.LLM, or what has its `stream`, `is_chat` and `context`; it must add nothing of its own, so what a
    created model says comes in `modelfile` and is the session's to change. `base` is what /save writes as FROM. With
    `raw`, or a model without a chat form, every prompt is text to continue, by itself.

    queued: pictures that the next question begins with, as parts that were prepared. They are gone once something was
    answered to them. pan_and_scan: how pictures are prepared. schema: a JSON schema of the next answers, as text.
    calling: the tools of the next answers (calling.Calling).
    """

    def __init__(
        self,
        llm: Any,
        *,
        base: str,
        modelfile: Modelfile | None = None,
        parameters: Mapping[str, Any] | None = None,
        system: str | None = None,
        raw: bool = False,
        pan_and_scan: Any = None,
    ):
        self.llm, self.base = llm, base
        self.raw = raw or not llm.is_chat
        self.pan_and_scan = pan_and_scan
        self.queued: list[dict[str, Any]] = []
        self.schema: str | None = None
        self.calling: Any = None
        self.parameters: dict[str, Any] = {**(modelfile.parameters if modelfile else {}), **(parameters or {})}
        self.system = system if system is not None else modelfile.system if modelfile else None
        self._opening = [{"role": role, "content": text} for role, text in modelfile.messages] if modelfile else []
        self.messages = list(self._opening)

    def ask(self, said: Content) -> Iterator[Any]:
        """Yield the answer's chunks; with tools events, of which text and the last are as chunks are.

        Closing the iterator stops the answer; what was said until then is kept.
        """
        sampling = {name: value for name, value in self.parameters.items() if name != "context"}
        if self.schema is not None:
            sampling["schema"] = self.schema
        content = self._content(said)
        turn = {"role": "user", "content": content}
        if self.calling is not None and not self.raw:
            return self._with_tools(turn, sampling)
        # Errors in the request are raised here, before anything is kept.
        chunks = self.llm.stream(content if self.raw else [*self._preface(), *self.messages, turn], **sampling)
        return self._keep(turn, chunks)

    def use(self, calling: Any, where: str) -> None:
        """Let the model call tools from now on, or none. ConfigError, which names `where`, without a chat form."""
        if calling is not None and self.raw:
            raise ConfigError(f"{where} needs a chat model: a text that is continued cannot hold calls.")
        self.calling = calling

    def clear(self) -> None:
        """Forget the turns and what is queued; the system prompt and parameters stay."""
        self.messages = list(self._opening)
        self.queued.clear()

    def modelfile(self) -> Modelfile:
        """The session as a created model: model, parameters and system prompt, without the turns."""
        opening = tuple((message["role"], message["content"]) for message in self._opening)
        return Modelfile(base=self.base, parameters=dict(self.parameters), system=self.system, messages=opening)

    def _content(self, said: Content) -> Content:
        """What was said, after the pictures that wait."""
        if not self.queued:
            return said
        return [*self.queued, *([{"type": "text", "text": said}] if isinstance(said, str) else said)]

    def _preface(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _with_tools(self, turn: dict[str, Any], sampling: dict[str, Any]) -> Iterator[Any]:
        from gemworks.tools.conversation import converse

        said = [*self._preface(), *self.messages, turn]
        known, tools = len(said), self.calling
        events = converse(self.llm, said, tools.begin(), rounds=tools.rounds, stop=tools.stop, **sampling)
        try:
            yield from events
        except GemworksError:  # such as a result that the context has no room for: the next question would fail too
            del said[known:]
            raise
        finally:
            if len(said) > known:
                self.queued.clear()
                self.messages += [turn, *said[known:]]

    def _keep(self, turn: dict[str, Any], chunks: Any) -> Iterator[Any]:
        answer, finished = "", False
        try:
            for chunk in chunks:
                answer += chunk.text
                finished = chunk.finish_reason is not None
                yield chunk
        finally:
            chunks.close()
            if finished or answer:
                self.queued.clear()
            if not self.raw and (finished or answer):
                self.messages += [turn, {"role": "assistant", "content": answer}]
