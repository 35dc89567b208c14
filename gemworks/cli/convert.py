"""gemworks convert: from any checkpoint that loads to a Hugging Face directory or a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A model's name, a directory or a .gguf file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory (safetensors), or a name ending in .gguf.")],
    outtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="GGUF: f32, f16, bf16, q8_0, q4_0. Default: as stored.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Directory: bfloat16, float16, float32. Default: as stored.")
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="q4_0 for the embedding too (it is q8_0 otherwise).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a sentence.")] = False,
) -> None:
    """Convert a model between safetensors and GGUF. OUT appears when it is whole."""
    from gemworks.weights import hub
    from gemworks.weights.convert import convert as convert_checkpoint

    if outtype and dtype:
        raise ConfigError("--outtype is for a .gguf file and --dtype for a directory; give one of them, got both.")
    to_gguf = out.suffix == ".gguf"
    if (dtype and to_gguf) or (outtype and not to_gguf):
        flag, other = ("--dtype", "--outtype") if to_gguf else ("--outtype", "--dtype")
        kind = "a .gguf file" if to_gguf else "a directory"
        raise ConfigError(f"{flag} is not for {kind}, and {out} is one. Use {other}.")
    if pure and outtype != "q4_0":
        raise ConfigError("--pure is about the embedding of a q4_0 file. Give it with --outtype q4_0, or leave it out.")
    resolved = hub.resolve(source)
    with console.loading(f"converting {resolved.name}") as progress:
        convert_checkpoint(resolved.path, out, outtype=outtype or dtype, pure=pure, force=force, progress=progress)
    num_bytes = sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir()))
    if json:
        console.emit_json({"source": str(resolved.path), "path": str(out), "size_bytes": num_bytes})
    else:
        console.line(f"Wrote {out} ({console.size(num_bytes)}).")
