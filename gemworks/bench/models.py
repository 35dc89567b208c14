"""The files that a benchmark runs on, by model and system, under one directory; what is missing is made.

DIR/1b/                      random weights in bf16: ours and its twin (a directory of your own will do)
DIR/1b-q4_0.gguf             the same weights for llama.cpp; also -q4_0-pure, -q8_0, -q4_0-q6_k
DIR/1b-openvino-int4/        the same weights for OpenVINO GenAI
"""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from gemworks import machine
from gemworks.bench.random_model import GGUF_KINDS, config_of, make_random, write_gguf
from gemworks.bench.rivals import Rivals
from gemworks.bench.system import SystemSpec
from gemworks.bench.vocabulary import save_made_up
from gemworks.errors import BackendError
from gemworks.model import costs
from gemworks.weights.convert import TOKENIZER_FILES

# llama.cpp's own choice for a Q4_0 file of the sizes whose rows are whole blocks of 256 (4B and larger): a table in
# Q6_K. For 270M and 1B its own choice is Q8_0, which is q4_0 here.
LLAMA_DEFAULT = "q4_0-q6_k"

# (ours, llama.cpp's file of the same formats), or what is compared where there is none.
_PAIRS = [("int4-b32+int8", "q4_0"), ("int4-b32", "q4_0-pure"), ("int8-b32", "q8_0")]
_LARGE_PAIRS = [("int4-b32+int8", "q4_0"), ("int4-b32", LLAMA_DEFAULT)]
TWIN_KIND = "bf16"

_EXPORT = "export openvino --task text-generation-with-past --weight-format int4 --sym --group-size 128 --ratio 1.0"

Say = Callable[[str], None]


def specs(model: str, directory: Path, rivals: Rivals, threads: int, *, twin: bool) -> list[SystemSpec]:
    """Return the systems to compare on one model, in the order in which they take turns: each of ours, then its rival.

    All of them are in memory at once, so the twin, which is bf16, takes part up to a quarter of this machine's.
    """
    config = config_of(model)
    found = []
    for ours, theirs in _LARGE_PAIRS if config.model_dim % 256 == 0 else _PAIRS:
        found.append(SystemSpec("ours", ours, str(directory / model), threads))
        if rivals.llama_cpp:
            found.append(SystemSpec("llama.cpp", theirs, str(directory / f"{model}-{theirs}.gguf"), threads))
    if rivals.openvino_python:
        path = str(directory / f"{model}-openvino-int4")
        found.append(SystemSpec("openvino", "int4", path, threads, rivals.openvino_python))
    if twin and costs.weight_bytes(config) < machine.memory().total / 4:
        found.append(SystemSpec("xla", TWIN_KIND, str(directory / model), threads))
    return found


def make_missing(
    model: str, wanted: list[SystemSpec], directory: Path, tokenizer: Path | None, say: Say
) -> list[SystemSpec]:
    """Make the files of `wanted` that are not there; return those that can run (an export may fail, and is told).

    tokenizer: for random weights that are made now; without one a made-up vocabulary goes with them, and that is said.
    """
    base = directory / model
    if not (base / "config.json").is_file():
        say(f"making random weights: {base}")
        _make_base(model, base, tokenizer, say)
    ready = []
    for spec in wanted:
        path = Path(spec.path)
        if not path.exists():
            say(f"making {path}")
            try:
                _make(spec, base)
            except BackendError as error:
                say(str(error))
                continue
        ready.append(spec)
    return ready


def find_tokenizer() -> Path | None:
    """Return the directory of a pulled model that has a tokenizer beside its weights, or None."""
    from gemworks.weights import store

    folders = (stored.path for stored in store.list_pulled())
    return next((folder for folder in folders if (folder / TOKENIZER_FILES[0]).is_file()), None)


def _make_base(model: str, base: Path, tokenizer: Path | None, say: Say) -> None:
    if tokenizer is not None:
        make_random(config_of(model), base, tokenizer=tokenizer)
        return
    say(
        "no official tokenizer was found (give --tokenizer DIR, or pull any Gemma 3): a made-up vocabulary of the same "
        "size goes with the weights.\nIt loads faster than the official one, so start says less than it could."
    )
    with tempfile.TemporaryDirectory(prefix="gemworks-bench-") as folder:
        save_made_up(Path(folder))
        make_random(config_of(model), base, tokenizer=Path(folder))


def _make(spec: SystemSpec, base: Path) -> None:
    path = Path(spec.path)
    if spec.engine == "openvino":
        _export(spec, base, path)
    elif spec.kind == LLAMA_DEFAULT:
        from gemworks.bench.rivals_llama import quantize

        source = path.with_name(f"{base.name}-bf16.gguf")
        had_source = source.exists()
        if not had_source:
            write_gguf(base, "bf16", source)
        quantize(source, path, spec.threads)
        if not had_source:
            source.unlink()
    else:
        assert spec.kind in GGUF_KINDS
        write_gguf(base, spec.kind, path)


def _export(spec: SystemSpec, base: Path, path: Path) -> None:
    """Export with optimum-cli, which lies beside OpenVINO's Python where it was installed."""
    assert spec.python is not None
    tool = Path(spec.python).parent / "optimum-cli"
    if not tool.is_file():
        raise BackendError(f'{spec.name}: {tool} is not there to export {base}. Install "optimum-intel[openvino]".')
    partial = path.with_name(f".{path.name}.partial")
    done = subprocess.run(
        [str(tool), *_EXPORT.split(), "--model", str(base), str(partial)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BackendError(f"{spec.name}: the export of {base} failed: {done.stderr.strip()[-300:]}")
    partial.rename(path)
