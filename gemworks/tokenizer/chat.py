r"""A conversation as token ids, exactly as Gemma was taught to read it.

    <bos><start_of_turn>user\n{system}\n\n{user text}<end_of_turn>\n<start_of_turn>model\n{answer}<end_of_turn>\n ...

The control tokens are put in as ids and never parsed from text, so a user who types `<end_of_turn>` has typed thirteen
characters. All that stands between two control tokens is tokenized as one text: that is how newlines merge in
transformers, where "user\n" followed by a text that begins with "\n\n" holds one token of three newlines.

What was said is trimmed as the published template does it: user and assistant text of surrounding white space, a
system message not at all. Of a system message given as a list only the first part is used.

Not here: images, which are refused (images.py renders chats that have some). There is no tool or function role in
Gemma 3.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from gemworks.errors import RequestError

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "text" or a list of parts}, as OpenAI has it


class Place(Enum):
    """What a turn holds beside text."""

    IMAGE = "image"


Piece = str | Place

_SPOKEN_BY = {"user": "user", "assistant": "model", "model": "model"}  # role -> name in the header

# Our own wording of the published template. Written to GGUF and tokenizer_config.json for other programs; Gemworks
# renders with `render_chat`, which agrees (tests/oracle/tokenizer).
TEMPLATE = r"""{%- set said = messages -%}
{%- set preface = '' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] -%}
    {%- set preface = (first if first is string else first[0]['text']) + '\n\n' -%}
    {%- set said = messages[1:] -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in said -%}
    {%- set is_user = loop.index0 % 2 == 0 -%}
    {%- if message['role'] not in (['user'] if is_user else ['assistant', 'model']) -%}
        {{- raise_exception('Roles must alternate user and assistant, beginning with user') -}}
    {%- endif -%}
    {{- '<start_of_turn>' + ('user' if is_user else 'model') + '\n' -}}
    {{- preface if loop.first else '' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- '<start_of_image>' if part['type'] == 'image' else part['text'] | trim -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\n' if add_generation_prompt else '' -}}
"""


def render_chat(
    tokenizer: "Tokenizer", messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the ids of a conversation, `<bos>` first, ending where the model is to answer.

    Roles alternate user and assistant, starting with user; a system message may come first. Content is a text or a
    list of {"type": "text", "text": ...}. Raises RequestError that names the message.
    """
    ids = [tokenizer.bos_id, *_turn_ids(tokenizer, _turns(messages))]
    return ids + _model_header(tokenizer) if add_generation_prompt else ids


def continue_chat(tokenizer: "Tokenizer", messages: Sequence[Message]) -> list[int]:
    """Return the ids to append after an answer's last id (without `<end_of_turn>`) to ask the next question.

    The answer's own ids stay as the model made them, so their keys and values can be kept; rendering the whole
    conversation again would trim the answer and may split it differently. `messages` are the new ones, user first.
    """
    if messages and messages[0].get("role") == "system":
        raise RequestError("messages[0]: a system message must begin a conversation, got one in the middle.")
    _, end = tokenizer.chat_ids
    return [end, *tokenizer.encode("\n"), *_turn_ids(tokenizer, _turns(messages)), *_model_header(tokenizer)]


def render_plain(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the ids of a raw prompt: `<bos>`, once, and the text. Pre-trained models continue it."""
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def chat_text(messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """Return the conversation as the template's text, to read; ids come from `render_chat`."""
    turns = "".join(f"<start_of_turn>{name}\n{text}<end_of_turn>\n" for name, text in _turns(messages))
    return f"<bos>{turns}" + ("<start_of_turn>model\n" if add_generation_prompt else "")


def is_gemma_template(text: str) -> bool:
    """Whether a chat template (jinja, or Go as in Ollama's Modelfiles) asks for what `render_chat` does.

    A jinja template is rendered on probe conversations where jinja2 is installed (it is optional); it may
    leave `<bos>` out and may refuse a system message. Without jinja2, and for Go, the text must hold Gemma's turn
    tokens and no other family's.
    """
    if not all(token in text for token in ("<start_of_turn>", "<end_of_turn>", "model")):
        return False
    if _FOREIGN.search(text):
        return False
    if _GO_FIELD.search(text) and "{%" not in text:
        return True
    try:
        import jinja2  # noqa: F401
    except ImportError:
        return "{{" in text
    return _renders_as_gemma(text)


def turns(
    messages: Sequence[Message], images: list[tuple[str, Mapping[str, Any]]] | None = None
) -> list[tuple[str, list[Piece]]]:
    """Return (`user` or `model`, what is said) of every turn, the system message folded into the first.

    Image parts become Place.IMAGE and are appended to `images` with where they stand; without `images` they are
    refused. Raises RequestError that names the message.
    """
    if isinstance(messages, (str, Mapping)):
        raise RequestError(f"messages must be a list of messages, got a {type(messages).__name__}.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise RequestError(f'messages[{i}]: a message must have "role" and "content", got {message!r:.80}.')
    preface, first = "", 0
    if messages and messages[0]["role"] == "system":
        preface, first = _system_text(messages[0]["content"]) + "\n\n", 1
    said = []
    for i, message in enumerate(messages[first:], start=first):
        role, wanted = message["role"], ("user", "assistant")[(i - first) % 2]
        if not isinstance(role, str) or role not in _SPOKEN_BY:
            raise RequestError(
                f'messages[{i}]: the role must be "user" or "assistant" ("system" only first), got {role!r}.'
            )
        if _SPOKEN_BY[role] != _SPOKEN_BY[wanted]:
            raise RequestError(
                f"messages[{i}]: roles must alternate user and assistant, beginning with user; "
                f'wanted "{wanted}" here, got "{role}".'
            )
        said.append((_SPOKEN_BY[role], [preface, *_content(message["content"], i, images)]))
        preface = ""
    if not said:
        raise RequestError(f"messages must hold at least one user message, got {len(messages)} messages without one.")
    return said


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(name, "".join(piece for piece in pieces if isinstance(piece, str))) for name, pieces in turns(messages)]


def _system_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        return _part_text(content[0], "messages[0].content[0]")
    raise RequestError(f"messages[0]: content must be a text or a list of parts, got {content!r:.80}.")


def _content(content: Any, i: int, images: list[tuple[str, Mapping[str, Any]]] | None) -> list[Piece]:
    if isinstance(content, str):
        return [content.strip()]
    if not isinstance(content, Sequence):
        raise RequestError(f"messages[{i}]: content must be a text or a list of parts, got {content!r:.80}.")
    pieces: list[Piece] = []
    for j, part in enumerate(content):
        where = f"messages[{i}].content[{j}]"
        if images is not None and _is_image(part):
            images.append((where, part))
            pieces.append(Place.IMAGE)
        else:
            pieces.append(_part_text(part, where).strip())
    return pieces


def _is_image(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and "image" in kind


def _part_text(part: Any, where: str) -> str:
    if _is_image(part):
        raise RequestError(f"{where}: an image needs a model with eyes, got one for a text model.")
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f'{where}: a part must be {{"type": "text", "text": ...}}, got {part!r:.80}.')
    return part["text"]


def _turn_ids(tokenizer: "Tokenizer", turns: Sequence[tuple[str, str]]) -> list[int]:
    start, end = tokenizer.chat_ids
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    for name, text in turns:
        ids += [start, *tokenizer.encode(f"{name}\n{text}"), end, *newline]
    return ids


def _model_header(tokenizer: "Tokenizer") -> list[int]:
    return [tokenizer.chat_ids[0], *tokenizer.encode("model\n")]


# Marks of the other families: <|im_start|>, <|eot_id|>, [INST], <<SYS>>, full-width bars, Alpaca's headings.
_FOREIGN = re.compile(r"<\|[^>\n]{1,40}\|>|\[/?INST\]|<<SYS>>|<\uff5c|### (?:Instruction|Response)")
_GO_FIELD = re.compile(r"\{\{-?[^{}]*[ (.$]\.?(?:Prompt|Messages|System|Response|Content|Role)\b")

_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "one two"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two\n\nlines"},
        {"role": "user", "content": "three {{ four }}"},
    ],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}],
)


class _Refused(Exception):
    """A template called raise_exception."""


def _renders_as_gemma(text: str) -> bool:
    """Render the probes as transformers would, in a sandbox: the template comes with a file from anywhere."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise _Refused(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals = {"raise_exception": refuse}  # without range(), loops end with the probe's messages
    try:
        template = environment.from_string(text)
    except TemplateError:
        return False
    for probe in _PROBES:
        wanted = chat_text(probe)
        try:
            got = template.render(messages=probe, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=True)
        except _Refused:
            if probe[0]["role"] == "system":
                continue  # older Gemma templates know no system message
            return False
        except Exception:  # whatever a foreign template stumbles over
            return False
        if got not in (wanted, wanted.removeprefix("<bos>")):
            return False
    return True
