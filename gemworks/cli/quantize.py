"""gemworks quantize: a smaller model from a larger one, with what it costs in perplexity.

Figures are computed with exact activations (the jax.numpy path), so that they tell of the weights alone.
"""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError, StorageError

METHODS = ("rtn", "gptq")

# Calibration: 32,768 tokens of the text. One forward pass and the outer products of 1B cost about as much again.
_CHUNKS, _CHUNK_TOKENS = 64, 512


def quantize(
    model: Annotated[str, typer.Argument(help="A model's name, a directory or a .gguf file.")],
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="The layers' matrices: int4-b32, int4, int8-b32, int8, sfp8, bf16.")
    ] = "int4-b32",
    embed: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Embedding and head. Default: int8 (int8-b32 in a .gguf file).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="A directory, or a name ending in .gguf.")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="rtn rounds to the nearest; gptq is better, slow, and needs a text.")
    ] = "rtn",
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="gptq: a text like those the model will see.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another text, to report perplexity before and after.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATTERN=FORMAT", help="An exception, as layers.*.attn.v=int8.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of tables.")] = False,
) -> None:
    """Quantize a model. OUT appears when it is whole; prints the plan, the sizes, and what it costs."""
    from gemworks.weights import hub
    from gemworks.weights.checkpoint import open_checkpoint

    _check_options(out, method, calibration, plan)
    wanted = _plan(format, embed, out, set_ or [])
    with open_checkpoint(hub.resolve(model).path) as checkpoint:
        facts = _plan_facts(checkpoint, wanted, model)
        if plan:
            return _show_plan(facts, json)
        assert out is not None
        facts |= _run(checkpoint, out, wanted, _Job(method, calibration, text, force), None if json else facts)
    _show_result(facts, json)


def _check_options(out: Path | None, method: str, calibration: Path | None, plan: bool) -> None:
    if method not in METHODS:
        raise ConfigError(f'--method must be one of {", ".join(METHODS)}, got "{method}".')
    if out is None and not plan:
        raise ConfigError("--out must say where the model goes: a directory, or a name ending in .gguf.")
    if method == "gptq" and calibration is None and not plan:
        raise ConfigError(
            "--method gptq needs --calibration FILE: some pages of the kind of text that the model will see.\n"
            "Without one, --method rtn rounds to the nearest."
        )
    if method != "gptq" and calibration is not None:
        raise ConfigError("--calibration is for --method gptq. Add that, or leave the text out.")


def _plan(format: str, embed: str | None, out: Path | None, overrides: list[str]):
    from gemworks.quant.plan import QuantPlan

    to_gguf = out is not None and out.suffix == ".gguf"
    default = ("int8-b32" if to_gguf else "int8") if format.startswith("int") else format
    return QuantPlan.parse(format, embed or default, overrides)


def _plan_facts(checkpoint, plan, model: str) -> dict[str, Any]:
    """The plan and its sizes, as `--json` prints them."""
    from gemworks.quant.plan import kept_bytes

    rows = plan.describe({name: entry.shape for name, entry in checkpoint.entries.items()})
    return {
        "model": model,
        "source": str(checkpoint.path),
        "source_bytes": checkpoint.num_bytes,
        "plan": [
            {
                "pattern": row.pattern,
                "format": row.format,
                "tensors": row.tensors,
                "weights": row.weights,
                "bytes": kept_bytes(row),
            }
            for row in rows
        ],
        "weights_bytes": sum(map(kept_bytes, rows)),
        "bits_per_weight": 8 * sum(map(kept_bytes, rows)) / sum(row.weights for row in rows),
    }


def _show_plan(facts: dict[str, Any], json: bool) -> None:
    if json:
        return console.emit_json(facts)
    rows = [
        [row["pattern"], row["format"], f"{row['tensors']:,}", f"{row['weights']:,}", console.size(row["bytes"])]
        for row in facts["plan"]
    ]
    weights = sum(row["weights"] for row in facts["plan"])
    tensors = sum(row["tensors"] for row in facts["plan"])
    rows.append(["total", "", f"{tensors:,}", f"{weights:,}", console.size(facts["weights_bytes"])])
    console.columns(["TENSORS", "FORMAT", "NUMBER", "WEIGHTS", "SIZE"], rows, right=(2, 3, 4))


def _show_result(facts: dict[str, Any], json: bool) -> None:
    if json:
        return console.emit_json(facts)
    console.line(
        f"Wrote {facts['path']} ({console.size(facts['size_bytes'])}; the source has "
        f"{console.size(facts['source_bytes'])}) in {facts['seconds']:.0f} s, "
        f"{facts['bits_per_weight']:.2f} bits a weight."
    )
    if not facts["perplexity"]:
        return
    rows = [[row["weights"], f"{row['perplexity']:.4f}", f"{row['bits_per_byte']:.4f}"] for row in facts["perplexity"]]
    console.line()
    console.columns(["WEIGHTS", "PERPLEXITY", "BITS A BYTE"], rows, right=(1, 2))
    console.line(f"{facts['perplexity'][0]['tokens']:,} tokens, in windows of {_CHUNK_TOKENS}.")


class _Job(NamedTuple):
    method: str
    calibration: Path | None
    text: Path | None
    force: bool


def _run(checkpoint, out: Path, plan, job: _Job, shown: dict[str, Any] | None) -> dict[str, Any]:
    """Quantize and measure; returns what there is to say of it. The plan in `shown` is printed before the work."""
    from gemworks.ops import select
    from gemworks.weights.quantize import check_request, write_quantized

    formats = check_request(checkpoint, out, plan, force=job.force)  # before texts are read and minutes are spent
    texts = _Texts(checkpoint, job.calibration, job.text)
    if shown:
        _show_plan(shown, json=False)
        console.line()
    started = time.perf_counter()
    with select.force("*", "xla"):
        make = texts.calibrated(formats) if job.method == "gptq" else None
        with console.loading(f"quantizing to {out.name}") as progress:
            write_quantized(checkpoint, out, plan, produce=make, force=job.force, progress=progress)
        seconds = time.perf_counter() - started
        perplexities = texts.perplexities(out, plan, job.method)
    return {
        "path": str(out),
        "method": job.method,
        "seconds": round(seconds, 1),
        "size_bytes": sum(p.stat().st_size for p in ([out] if out.is_file() else out.iterdir())),
        "perplexity": perplexities,
    }


class _Texts:
    """The texts of a run as token ids, and what is done with them."""

    def __init__(self, checkpoint, calibration: Path | None, text: Path | None):
        self._checkpoint = checkpoint
        self._chunks, self._ids, self._text_bytes = None, [], 0
        if calibration is None and text is None:
            return
        from gemworks.weights.tokenizer_cache import load_tokenizer

        tokenizer = load_tokenizer(checkpoint)
        if calibration is not None:
            from gemworks.quant.calibration import cut_into_chunks

            self._chunks = cut_into_chunks(
                tokenizer.encode(_read_text(calibration), control=True),
                checkpoint.generation.bos_id,
                length=min(_CHUNK_TOKENS, checkpoint.config.max_positions),
                count=_CHUNKS,
            )
        if text is not None:
            read = _read_text(text)
            self._ids, self._text_bytes = tokenizer.encode(read, control=True), len(read.encode())

    def calibrated(self, formats):
        """A function that quantizes a matrix of the checkpoint with the calibration text."""
        from gemworks.quant.calibration import Calibration

        assert self._chunks is not None
        made = Calibration(self._checkpoint.config, self._checkpoint.read, formats, self._chunks)
        return lambda name, format: made.quantized(name)

    def perplexities(self, out: Path, plan, method: str) -> list[dict[str, Any]]:
        """Perplexity of the model as it was, rounded to the nearest, and as it is now; [] without a text."""
        if not self._ids:
            return []
        from gemworks.weights.checkpoint import open_checkpoint
        from gemworks.weights.quantize import exact_model

        stored = sorted({entry.dtype for entry in self._checkpoint.entries.values() if len(entry.shape) == 2})
        cases: list[tuple[str, Any, Any]] = [(f"{', '.join(stored)} (source)", self._opened(), None)]
        if method == "gptq":
            cases.append(("rtn", self._opened(), plan))
        cases.append((method, partial(open_checkpoint, out), None))
        found = []
        for label, opened, quant in cases:
            with opened() as checkpoint:
                found.append(self._measured(exact_model(checkpoint, quant), label))
        return found

    def _opened(self):
        return partial(nullcontext, self._checkpoint)

    def _measured(self, model, label: str) -> dict[str, Any]:
        from gemworks.quant.perplexity import measure

        with console.waiting(f"perplexity, {label}"):
            found = measure(
                model,
                self._ids,
                bos_id=self._checkpoint.generation.bos_id,
                text_bytes=self._text_bytes,
                window=_CHUNK_TOKENS,
            )
        return {
            "weights": label,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text, and byte {error.start} is not.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
