"""gemworks show: what a model is, read from its files; nothing is loaded."""

from typing import Annotated, Any

import typer

from gemworks.cli import console


def show(
    model: Annotated[str, typer.Argument(help="A name, a directory or a .gguf file.")],
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print the model as a Modelfile.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False,
) -> None:
    """Show a model's architecture, size, context and how it samples."""
    from gemworks.weights import hub
    from gemworks.weights.modelfile import Modelfile, render_modelfile

    resolved = hub.resolve(model)
    if modelfile:
        console.write(render_modelfile(resolved.modelfile or Modelfile(base=resolved.name)))
        return
    facts = describe(resolved)
    if json:
        console.emit_json(facts)
    else:
        console.pairs(rows(facts))


def describe(resolved) -> dict[str, Any]:
    """Facts about a resolved model, as `show --json` prints them. Sizes in bytes and elements, contexts in tokens."""
    from gemworks.weights.checkpoint import open_checkpoint

    with open_checkpoint(resolved.path) as checkpoint:
        config, generation = checkpoint.config, checkpoint.generation
        dtypes: dict[str, int] = {}
        for entry in checkpoint.entries.values():
            dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + entry.num_bytes
        facts = {
            "name": resolved.name,
            "architecture": "gemma3",
            "parameters": checkpoint.num_parameters,
            "context": config.max_positions,
            "layers": {
                "local": sum(spec.is_local for spec in config.layers),
                "global": sum(not spec.is_local for spec in config.layers),
                "window": config.local_spec.window if config.local_spec else None,
            },
            "model_dim": config.model_dim,
            "ffw_dim": config.ffw_dim,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "format": checkpoint.format,
            "stored_as": dict(sorted(dtypes.items(), key=lambda item: -item[1])),
            "size_bytes": checkpoint.num_bytes,
            "is_chat": bool(checkpoint.is_chat),
            "vision": _vision(resolved.path, config),
            "generation": {
                "temperature": generation.temperature if generation.do_sample else 0.0,
                "top_k": generation.top_k,
                "top_p": generation.top_p,
                "eos_ids": list(generation.eos_ids),
            },
            "path": str(resolved.path),
        }
    created = resolved.modelfile
    if created:
        facts |= {"from": created.base, "parameters_set": dict(created.parameters), "system": created.system}
    return facts


def _vision(path, config) -> dict[str, Any] | None:
    """What a model sees with, None where it reads text only."""
    from gemworks.cli.plan_images import tower_bytes, vision_config

    vision = vision_config(None, path)
    if vision is None:
        return None
    return {
        "image_size": vision.image_size,
        "tokens_per_image": vision.tokens_per_image,
        "layers": vision.num_layers,
        "model_dim": vision.model_dim,
        "size_bytes": tower_bytes(config, vision),
    }


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as names and values to read."""
    layers, generation = facts["layers"], facts["generation"]
    window = f", window {layers['window']:,}" if layers["window"] else ""
    found = [
        ("model", facts["name"]),
        ("architecture", f"{facts['architecture']}, {'chat' if facts['is_chat'] else 'pre-trained (continues text)'}"),
        ("parameters", _count(facts["parameters"])),
        ("context", f"{facts['context']:,} tokens"),
        (
            "layers",
            f"{layers['local'] + layers['global']} ({layers['local']} local{window}; {layers['global']} global)",
        ),
        ("width", f"{facts['model_dim']:,}, feed-forward {facts['ffw_dim']:,}"),
        ("heads", f"{facts['num_heads']} query, {facts['num_kv_heads']} key/value, {facts['head_dim']} wide"),
        ("vocabulary", f"{facts['vocab_size']:,}"),
        ("stored as", f"{facts['format']}, {_dtypes(facts['stored_as'])}"),
        ("size", f"{console.size(facts['size_bytes'])} (text model)"),
        ("reads", _reads(facts["vision"])),
        ("samples with", ", ".join(f"{name} {generation[name]}" for name in ("temperature", "top_k", "top_p"))),
        ("path", facts["path"]),
    ]
    if "from" in facts:
        parameters = [f"{name} {_value(value)}" for name, value in facts["parameters_set"].items()]
        found.append(("made from", facts["from"]))
        found += [("parameters set", "\n".join(parameters))] if parameters else []
        found += [("system", facts["system"])] if facts["system"] else []
    return found


def _reads(vision: dict[str, Any] | None) -> str:
    if vision is None:
        return "text"
    side = f"{vision['image_size']:,}"
    return f"text, and images of {side} x {side} pixels as {vision['tokens_per_image']:,} tokens"


def _count(number: int) -> str:
    for unit, length in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= length:
            return f"{number / length:.3g}{unit} ({number:,})"
    return f"{number:,}"


def _dtypes(stored_as: dict[str, int]) -> str:
    """The main format, then what else there is: Q4_0 + F16 + F32."""
    return " + ".join(stored_as)


def _value(value: object) -> str:
    return ", ".join(repr(one) for one in value) if isinstance(value, tuple) else str(value)
