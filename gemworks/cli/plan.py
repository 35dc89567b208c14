"""gemworks plan: how much memory a model will take, before anything is fetched or loaded.

Weights are counted by shape and format; the cache of keys and values as Gemworks keeps it (local layers a window of it)
beside the way the Gemma 3 report counts it (every layer all of it). 1 GB is 10^9 bytes, as in the report.
"""

from typing import Annotated, Any

import typer

from gemworks.cli import console, plan_images
from gemworks.engine.memory import KV_TYPES
from gemworks.errors import ConfigError
from gemworks.model.vision_config import VisionConfig

FORMATS = ("bf16", "int4", "int4-b32", "sfp8", "int8", "int8-b32")

# Gemma 3 technical report, table 3 ("raw" rows), GB (spec 15). Rounded, and not of the text alone from 4B on.
REPORT_WEIGHTS_GB = {
    "1b": {"bf16": 2.0, "int4": 0.5, "int4-b32": 0.7, "sfp8": 1.0},
    "4b": {"bf16": 8.0, "int4": 2.6, "int4-b32": 2.9, "sfp8": 4.4},
    "12b": {"bf16": 24.0, "int4": 6.6, "int4-b32": 7.1, "sfp8": 12.4},
    "27b": {"bf16": 54.0, "int4": 14.1, "int4-b32": 15.3, "sfp8": 27.4},
}

# Formats that the CPU kernels compute in; others are bf16 in memory, or become it (docs/plan.md).
WITH_KERNELS = ("int4", "int4-b32", "sfp8", "int8", "int8-b32")

_DEFAULT_CONTEXT = 8192  # as gemworks.llm, which imports more than a plan needs


def plan(
    model: Annotated[str, typer.Argument(help="gemma3:27b (nothing is fetched), or a model on this machine.")],
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens. Default: 8,192 or the model's limit.")
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")] = None,
    embed: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The embedding's and head's. Default: the same.")
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Plan an engine that runs so many texts at once, with its prefix cache."),
    ] = None,
    cache: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens of the prefix cache beside running texts.")
    ] = 0,
    kv: Annotated[str, typer.Option(metavar="TYPE", help=f"Keys and values: {', '.join(KV_TYPES)}.")] = "bfloat16",
    images: Annotated[int, typer.Option(metavar="N", min=0, help="Images in the prompt.")] = 0,
    pan_and_scan: Annotated[bool, typer.Option("--pan-and-scan", help="Count the crops of Pan & Scan too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False,
) -> None:
    """Show what a model needs in memory at a context and format, and whether it fits here."""
    if kv not in KV_TYPES:
        raise ConfigError(f'--kv must be one of {", ".join(KV_TYPES)}, got "{kv}".')
    if cache and sequences is None:
        raise ConfigError("--cache is a part of an engine's memory: say for how many texts with --sequences.")
    for option, value in (("--format", format), ("--embed", embed)):
        if value is not None and value not in FORMATS:
            raise ConfigError(f'{option} must be one of {", ".join(FORMATS)}, got "{value}".')
    if pan_and_scan and not images:
        raise ConfigError("--pan-and-scan is about images: say how many with --images.")
    config, size, vision = _config_of(model)
    if context is None:
        context = min(_DEFAULT_CONTEXT, config.max_positions)
    elif not 1 <= context <= config.max_positions:
        raise ConfigError(f"--context must be between 1 and {config.max_positions:,} for {model}, got {context:,}.")
    seen = plan_images.plan_images(model, config, vision, images=images, pan_and_scan=pan_and_scan) if images else None
    facts = make_plan(model, config, size, context, format, embed, kv_type=kv, vision=vision, images=seen)
    if sequences is not None:
        facts["engine"] = plan_engine(config, facts, sequences=sequences, cache_tokens=cache)
    if json:
        console.emit_json(facts)
    else:
        _draw(facts, (format,) if format else FORMATS)


def make_plan(
    model: str,
    config,
    size: str | None,
    context: int,
    format: str | None,
    embed: str | None = None,
    *,
    kv_type: str = "bfloat16",
    vision: VisionConfig | None = None,
    images: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plan as `--json` prints it. The top-level figures are for `format`, bf16 where it is None.

    `embed` is the format of embedding and head; None: the same. `images`: of plan_images, which the totals have in
    them.
    """
    from gemworks import machine
    from gemworks.model import costs

    memory = machine.memory()
    kv, kv_full = (costs.kv_bytes(config, context, windowed=windowed, kv=kv_type) for windowed in (True, False))
    more = plan_images.added_bytes(images) if images else 0
    formats = {}
    for name in FORMATS:
        weights = costs.weight_bytes(config, name, embed_format=embed)
        formats[name] = {
            "weights_bytes": weights,
            "report_weights_gb": REPORT_WEIGHTS_GB.get(size or "", {}).get(name),
            "total_bytes": weights + kv + more,
            "total_full_kv_bytes": weights + kv_full + more,
            "fits": weights + kv + more <= memory.available if memory.available else None,
        }
    local = config.local_spec
    return {
        "model": model,
        "size": size,
        "parameters": costs.num_parameters(config),
        "context": context,
        "format": format or "bf16",
        "embed_format": embed,
        **formats[format or "bf16"],
        "kv": kv_type,
        "kv_bytes": kv,
        "kv_int8_bytes": costs.kv_bytes(config, context, kv="int8"),
        "kv_full_bytes": kv_full,
        "vision_bytes": plan_images.tower_bytes(config, vision) if vision else 0,
        "images": images,
        "layers": {
            "local": sum(spec.is_local for spec in config.layers),
            "global": sum(not spec.is_local for spec in config.layers),
            "window": local.window if local else None,
        },
        "formats": formats,
        "machine": {"memory_bytes": memory.total, "available_bytes": memory.available},
    }


def plan_engine(config, facts: dict[str, Any], *, sequences: int, cache_tokens: int) -> dict[str, Any]:
    """Return what an engine takes for `sequences` texts of the context at once: pools to the byte, the rest estimated.

    The top-level figures are for the plan's format; "formats" has the total of each, and whether it fits here.
    """
    from gemworks.engine.memory import LARGEST_CHUNK, LargestStep, plan_kv, plan_memory

    kv = plan_kv(
        config, context=facts["context"], max_sequences=sequences, kv_dtype=facts["kv"], cache_tokens=cache_tokens
    )
    available = facts["machine"]["available_bytes"]
    more = plan_images.added_bytes(facts["images"]) if facts["images"] else 0
    formats = {}
    for name, row in facts["formats"].items():
        step = LargestStep(
            tokens=LARGEST_CHUNK + sequences,
            rows=sequences + 1,
            has_kernels=name in WITH_KERNELS,
            is_quantized=False,
        )
        plan = plan_memory(config, kv, weight_bytes=row["weights_bytes"] + more, step=step)
        formats[name] = {
            "workspace_bytes": plan.workspace_bytes,
            "total_bytes": plan.total_bytes,
            "fits": plan.total_bytes <= available if available else None,
        }
    return {
        "sequences": sequences,
        "kv_bytes": kv.total_bytes,
        "pages_bytes": kv.pages_bytes,
        "rings_bytes": kv.rings_bytes,
        "local_pages_bytes": kv.local_pages_bytes,
        "pages": kv.pages,
        "page_size": kv.page_size,
        "cache_tokens": kv.cache_tokens,
        "process_bytes": plan.process_bytes + plan.compile_bytes,
        **formats[facts["format"]],
        "formats": formats,
    }


def _config_of(model: str):
    """(config, released size, vision config) of a released name, without any file, or of a model on this machine.

    The size is None where no release is like it, the vision config where it reads text only.
    """
    from gemworks.model.config import RELEASED
    from gemworks.weights import hub, store

    created = store.read_created(model)
    size = hub.released_size(created.base if created else model)
    if size:
        return RELEASED[size], size, plan_images.vision_config(size, None)
    from gemworks.weights.checkpoint import open_checkpoint

    path = hub.resolve(model).path
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
    size = next((name for name, released in RELEASED.items() if released == config), None)
    return config, size, plan_images.vision_config(size, path)


def _draw(facts: dict[str, Any], formats: tuple[str, ...]) -> None:
    layers, memory = facts["layers"], facts["machine"]
    window = f" with a window of {layers['window']:,}" if layers["window"] else ""
    console.pairs(
        [
            ("model", f"{facts['model']}, {facts['parameters']:,} parameters (text)"),
            ("layers", f"{layers['local']} local{window}, {layers['global']} global"),
            ("context", f"{facts['context']:,} tokens, one sequence"),
            ("KV cache", f"{console.size(facts['kv_bytes'])} as Gemworks keeps it: local layers keep their window"),
            *([] if facts["kv"] == "int8" else [("", f"{console.size(facts['kv_int8_bytes'])} with --kv int8")]),
            ("", f"{console.size(facts['kv_full_bytes'])} as the report counts: every layer keeps everything"),
            *(plan_images.rows(facts["images"], facts["context"]) if facts["images"] else []),
            ("this machine", f"{console.size(memory['memory_bytes'])}, {console.size(memory['available_bytes'])} free"),
        ]
    )
    console.line()
    if "engine" in facts:
        _draw_engine(facts, facts["engine"], formats)
        return
    with_report = any(facts["formats"][name]["report_weights_gb"] for name in formats)
    headers = ["FORMAT", "WEIGHTS", "REPORT SAYS", "WITH KV", "WITH FULL KV", "FITS HERE"]
    rows = [
        [
            name,
            console.size(row["weights_bytes"]),
            f"{row['report_weights_gb']:.1f} GB" if row["report_weights_gb"] else "-",
            console.size(row["total_bytes"]),
            console.size(row["total_full_kv_bytes"]),
            {True: "yes", False: "no", None: "unknown"}[row["fits"]],
        ]
        for name in formats
        for row in [facts["formats"][name]]
    ]
    if not with_report:
        headers.pop(2)
        for row in rows:
            row.pop(2)
    console.columns(headers, rows, right=range(1, len(headers) - 1))
    if facts["images"]:
        console.line("\nWEIGHTS are of the text model; WITH KV has the vision tower and the embeddings in it too.")
    elif facts["vision_bytes"]:
        vision = console.size(facts["vision_bytes"])
        console.line(
            f"\nWEIGHTS are of the text model; its vision tower ({vision} in bf16) is not loaded before an image comes."
        )
    if facts["embed_format"]:
        console.line(f"\nEmbedding and head are counted in {facts['embed_format']}.")


def _draw_engine(facts: dict[str, Any], engine: dict[str, Any], formats: tuple[str, ...]) -> None:
    """The engine's pools, and a line for each format."""
    texts = f"{engine['sequences']} text{'s' if engine['sequences'] > 1 else ''} at once"
    beside = f" and {engine['cache_tokens']:,} tokens of cache" if engine["cache_tokens"] else ""
    console.pairs(
        [
            ("engine", f"{texts}, each up to {facts['context']:,} tokens, keys and values in {facts['kv']}"),
            ("pages", f"{console.size(engine['pages_bytes'])} for global layers: room for all of them{beside}"),
            ("rings", f"{console.size(engine['rings_bytes'])} for local layers: a window for each"),
            ("windows", f"{console.size(engine['local_pages_bytes'])} of local layers in the prefix cache"),
            ("process", f"{console.size(engine['process_bytes'])} for Python, jax and compiled programs (estimated)"),
        ]
    )
    console.line()
    rows = [
        [
            name,
            console.size(facts["formats"][name]["weights_bytes"]),
            console.size(engine["kv_bytes"]),
            console.size(engine["formats"][name]["workspace_bytes"]),
            console.size(engine["formats"][name]["total_bytes"]),
            {True: "yes", False: "no", None: "unknown"}[engine["formats"][name]["fits"]],
        ]
        for name in formats
    ]
    headers = ["FORMAT", "WEIGHTS", "KV AND CACHE", "WORKSPACE", "TOTAL", "FITS HERE"]
    console.columns(headers, rows, right=range(1, len(headers) - 1))
