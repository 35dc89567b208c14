"""POST /api/show: what a model is and how it was made, read from its files."""

from typing import Any

from fastapi import APIRouter, Request, Response

from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.ollama.answer import dumped
from gemworks.server.ollama.facts import Facts
from gemworks.server.ollama.fields import ShowBody
from gemworks.server.ollama.names import Listed, capabilities, describe, details, rfc3339
from gemworks.server.openai.document import body_of
from gemworks.server.streams import JSONBytes
from gemworks.weights.modelfile import PARAMETERS, Modelfile, render_modelfile
from gemworks.weights.names import expected_shapes

router = APIRouter()

# Gemma's turns in Ollama's template language, for programs that read it. Chats are rendered by tokenizer/chat.py.
TEMPLATE = """{{- range $at, $said := .Messages }}
{{- if eq $said.Role "assistant" }}<start_of_turn>model
{{ $said.Content }}<end_of_turn>
{{ else }}<start_of_turn>user
{{ $said.Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""
_PLAIN = "{{ .Prompt }}"

# How wide the names of parameters are in the text that Ollama's clients print.
_WIDTH = 30


@router.post("/api/show", openapi_extra=body_of(ShowBody))
async def show(request: Request) -> Response:
    """One model: details, architecture, parameters, template, system message, and its Modelfile."""
    body = await read_body(request, ShowBody)
    host = request.app.state.host
    told = await asking.in_thread(lambda: _shown(describe(host.resolve(body.named)), verbose=bool(body.verbose)))
    return JSONBytes(dumped(told))


def _shown(model: Listed, *, verbose: bool) -> dict[str, Any]:
    facts, created = model.facts, model.modelfile
    is_chat = facts is None or facts.is_chat
    told: dict[str, Any] = {
        "modelfile": render_modelfile(created or Modelfile(base=model.name)),
        "parameters": "\n".join(_parameters(facts, created)),
        "template": TEMPLATE if is_chat else _PLAIN,
        "details": details(model),
        "model_info": _model_info(facts) if facts else {},
        "capabilities": capabilities(facts),
        "modified_at": rfc3339(model.modified_s),
    }
    if created is not None:
        told |= {"system": created.system} if created.system else {}
        told |= {"license": "\n".join(created.licenses)} if created.licenses else {}
        if created.messages:
            told["messages"] = [{"role": role, "content": text} for role, text in created.messages]
    if verbose and facts is not None:
        shapes = expected_shapes(facts.config).items()
        told["tensors"] = [{"name": name, "type": facts.level, "shape": list(shape)} for name, shape in shapes]
    return told


def _parameters(facts: Facts | None, created: Modelfile | None) -> list[str]:
    """How the model samples where a request says nothing, a line a value, by Ollama's names."""
    values = {**(facts.sampling if facts else {}), **(created.parameters if created else {})}
    lines = []
    for parameter in PARAMETERS:
        if parameter.name in values:
            value = values[parameter.name]
            several = [f'"{one}"' for one in value] if isinstance(value, tuple) else [-1 if value is None else value]
            lines += [f"{parameter.ollama:<{_WIDTH}} {one}" for one in several]
    return lines


def _model_info(facts: Facts) -> dict[str, Any]:
    """The architecture by the keys of a GGUF file, which is where Ollama's clients look."""
    config = facts.config
    local, world = config.local_spec, config.global_spec
    told: dict[str, Any] = {
        "block_count": len(config.layers),
        "context_length": config.max_positions,
        "embedding_length": config.model_dim,
        "feed_forward_length": config.ffw_dim,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        **({"attention.sliding_window": local.window, "rope.local.freq_base": local.rope_base} if local else {}),
        **({"rope.global.freq_base": world.rope_base} if world else {}),
        **(facts.vision or {}),
    }
    return {
        "general.architecture": "gemma3",
        "general.parameter_count": facts.num_parameters,
        **{f"gemma3.{key}": value for key, value in told.items()},
        "tokenizer.ggml.model": "llama",
        **{f"tokenizer.ggml.{key}": value for key, value in facts.tokens.items()},
    }
