"""The bodies of Ollama's API. What a field may hold is checked here; what it means, by whoever reads it.

As in Ollama, fields that are not known are ignored and null is the same as nothing.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gemworks.server.errors import FieldError

MAX_TOP_LOGPROBS = 20


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class NamedBody(_Body):
    """A body that names a model; `name` is what the field was called once."""

    model: str | None = None
    name: str | None = None

    @property
    def named(self) -> str:
        """The model's name. Raises FieldError where there is none."""
        if found := self.model or self.name:
            return found
        raise FieldError("model is required, and there is none.", param="model", code="missing_required_parameter")


class Message(_Body):
    """One message of a conversation. images: base64. tool_name, tool_call_id: of a tool's result, what it answers."""

    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[Any] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Answered(NamedBody):
    """What /api/chat and /api/generate share."""

    stream: bool | None = None
    format: Any = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces; it does where nothing is said."""
        return self.stream is not False


class ChatBody(_Answered):
    """POST /api/chat."""

    messages: list[Message] | None = None
    tools: list[Any] | None = None


class GenerateBody(_Answered):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class EmbedBody(NamedBody):
    """POST /api/embed."""

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=0)
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsBody(NamedBody):
    """POST /api/embeddings, which came before /api/embed."""

    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class ShowBody(NamedBody):
    """POST /api/show."""

    verbose: bool | None = None


class PullBody(NamedBody):
    """POST /api/pull."""

    stream: bool | None = None
    insecure: bool | None = None


class CopyBody(_Body):
    """POST /api/copy."""

    source: str
    destination: str


class CreateBody(NamedBody):
    """POST /api/create."""

    from_: str | None = Field(None, alias="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Message] | None = None
    quantize: str | None = None
    stream: bool | None = None
