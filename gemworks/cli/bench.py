"""gemworks bench: measure this machine, ours and rivals; and make the random models that is done on."""

import json as json_module
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

import gemworks
from gemworks import machine
from gemworks.cli import console
from gemworks.errors import ConfigError

app = typer.Typer(help="Measure Gemworks on this machine, next to rivals and to what the machine allows.")


def cpu(
    models: Annotated[str, typer.Option(metavar="SIZES", help="Sizes, as in 270m,1b,4b.")] = "270m,1b",
    rivals: Annotated[
        str, typer.Option(metavar="NAMES", help="all (those installed), none, or some of llama.cpp,openvino.")
    ] = "all",
    what: Annotated[
        str,
        typer.Option(metavar="ROWS", help="all, or some of decode,prefill,batch,long,matmul,start,memory."),
    ] = "all",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Measured rounds; medians are shown.")] = 5,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of every system. Default: the usable cores.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the models lie or are made. Default: the cache.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Tokenizer for models made now. Default: a pulled model's.")
    ] = None,
    openvino_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="The Python that has openvino-genai. Default: this one.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin/--no-twin", help="Measure bf16 on ops/xla too.")] = True,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the roofline. Needs matplotlib.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Compare decode, prefill, start and memory with llama.cpp and OpenVINO GenAI in turns; ends with a JSON line."""
    from gemworks import env
    from gemworks.bench import cpu as bench
    from gemworks.bench import report, roofline
    from gemworks.bench.random_model import config_of
    from gemworks.bench.rivals import find

    sizes = [size.strip().lower() for size in models.split(",") if size.strip()]
    if not sizes:
        raise ConfigError(f'--models must name at least one size, as in 270m,1b, got "{models}".')
    for size in sizes:
        config_of(size)
    whats, found = bench.check_whats(what), find(rivals, openvino_python)
    if plot is not None:
        roofline.check_matplotlib()
    folder = folder or env.cache() / "bench"
    reports = []
    for size in sizes:
        plan = _plan(size, found, folder, tokenizer, twin=twin, threads=threads, repeats=repeats, whats=whats)
        reports.append(bench.run(plan, console.note))
        if not json:
            console.line(report.text(reports[-1]) + "\n")
    if plot is not None:
        roofline.draw(reports, plot)
    about = {"gemworks": gemworks.__version__, "machine": _machine(), "repeats": repeats}
    console.line(json_module.dumps(about | {"models": reports}))


def engine(
    model: Annotated[str, typer.Option(metavar="SIZE|DIR", help="A size of random weights, or a directory.")] = "1b",
    scenario: Annotated[
        str,
        typer.Option(metavar="NAMES", help="all, or some of load,streams,prefix,chat,fairness,speculation,host."),
    ] = "load",
    rate: Annotated[float, typer.Option(metavar="R", help="Requests a second; arrivals are a Poisson process.")] = 1.0,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long requests arrive.")] = 30.0,
    prompt: Annotated[int, typer.Option(metavar="N", help="Tokens of a short prompt.")] = 128,
    answer: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer.")] = 64,
    shared_prefix: Annotated[int, typer.Option(metavar="N", help="Tokens that every prompt begins with.")] = 0,
    mix: Annotated[
        str, typer.Option(metavar="KINDS", help="short, long (8 times that), or both: long,short.")
    ] = "short",
    keys: Annotated[int, typer.Option(metavar="N", help="Keys that requests belong to, in turn.")] = 1,
    sequences: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences that run at once.")] = 16,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Counted rounds of what is repeated.")] = 3,
    format: Annotated[str, typer.Option(metavar="FORMAT", help="bf16, or blocks+embedding.")] = "int4-b32+int8",
    kv: Annotated[str | None, typer.Option(metavar="TYPE", help="bfloat16, int8 or float32.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Other arrivals and prompts.")] = 0,
    rivals: Annotated[str, typer.Option(metavar="NAMES", help="all (if installed), none, or llama.cpp.")] = "all",
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: the usable cores.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the models lie or are made. Default: the cache.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the load. Needs matplotlib.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Offer the engine a load, or ask it one of the questions it has targets for; ends with a JSON line."""
    from gemworks import env
    from gemworks.bench import engine as bench
    from gemworks.bench import engine_report
    from gemworks.bench.engine_scenarios import Setting
    from gemworks.bench.rivals import find

    names = bench.check_names(scenario)
    load = bench.make_load(
        rate=rate,
        seconds=seconds,
        prompt=prompt,
        answer=answer,
        shared_prefix=shared_prefix,
        mix=mix,
        keys=keys,
        seed=seed,
    )
    has_rival = "streams" in names and find(rivals).llama_cpp
    if plot is not None:
        engine_report.check_plot(names)
    folder, threads = folder or env.cache() / "bench", threads or machine.threads()
    found = bench.find_systems(model, folder, format, console.note, threads=threads, has_rival=has_rival)
    setting = Setting(load=load, sequences=sequences, repeats=repeats, kv=kv)
    report = bench.run(bench.Plan(names=names, setting=setting, log=folder / "workers.log", **found), console.note)
    if not json:
        console.line(engine_report.text(report) + "\n")
    if plot is not None:
        engine_report.draw([report], plot)
    about = {"bench": "engine", "gemworks": gemworks.__version__, "machine": _machine()}
    console.line(json_module.dumps(about | bench.without_samples(report)))


def vision(
    systems: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="all (those installed), or some of ours,ours fp32,xla,transformers float32,"
            "transformers bfloat16,llama.cpp.",
        ),
    ] = "all",
    shape: Annotated[str, typer.Option(metavar="SHAPE", help="real: 896 pixels, 27 layers; or small.")] = "real",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Measured rounds; medians are shown.")] = 3,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: the usable cores.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the files lie or are made. Default: the cache.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Encode one picture with ours, its exact path, its twin and rivals in turns; ends with a JSON line."""
    from gemworks import env
    from gemworks.bench import vision as bench

    if shape not in bench.SHAPES:
        raise ConfigError(f'--shape must be one of {", ".join(bench.SHAPES)}, got "{shape}".')
    found = bench.find_systems(systems)
    folder = folder or env.cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    plan = bench.Plan(
        config=bench.SHAPES[shape],
        systems=found,
        folder=folder / f"vision-{shape}",
        threads=threads or machine.threads(),
        repeats=repeats,
        log=folder / "workers.log",
    )
    report = bench.run(plan, console.note)
    if not json:
        console.line(bench.text(report) + "\n")
    about = {"gemworks": gemworks.__version__, "machine": _machine()}
    console.line(json_module.dumps(report | about))


def make_random(
    size: Annotated[str, typer.Argument(help="270m, 1b, 4b, 12b or 27b.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The directory to make.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A directory whose tokenizer goes with it. Default: a pulled model's."),
    ] = None,
    gguf: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Also DIR-KIND.gguf: q4_0, q4_0-pure, q8_0, bf16. May be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Other numbers.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a sentence.")] = False,
) -> None:
    """Make a model of random weights at a released size, in bf16: as fast as the real one, and as large."""
    from gemworks.bench import random_model
    from gemworks.bench.models import find_tokenizer

    config = random_model.config_of(size)
    kinds = gguf or []
    for kind in kinds:
        if kind not in random_model.GGUF_KINDS:
            raise ConfigError(f'--gguf must be one of {", ".join(random_model.GGUF_KINDS)}, got "{kind}".')
    tokenizer = tokenizer or find_tokenizer()
    if kinds and tokenizer is None:
        raise ConfigError(
            "--gguf needs a tokenizer, which a GGUF file carries inside, and none was found.\n"
            "Give --tokenizer DIR with the official tokenizer.json, or pull any Gemma 3, which brings it."
        )
    made = [out, *(out.with_name(f"{out.name}-{kind}.gguf") for kind in kinds)]
    with console.loading(f"making {out}") as progress:
        random_model.make_random(config, out, seed=seed, tokenizer=tokenizer, force=force, progress=progress)
    for kind, path in zip(kinds, made[1:], strict=True):
        with console.loading(f"making {path}") as progress:
            random_model.write_gguf(out, kind, path, force=force, progress=progress)
    if json:
        console.emit_json({"size": size, "paths": [str(path) for path in made]})
    else:
        console.line(f"Made {', '.join(map(str, made))}.")


app.command("cpu", help=cpu.__doc__)(cpu)
app.command("engine", help=engine.__doc__)(engine)
app.command("vision", help=vision.__doc__)(vision)
app.command("make-random", help=make_random.__doc__)(make_random)


def _plan(size: str, rivals, folder: Path, tokenizer: Path | None, *, twin: bool, threads: int | None, **more):
    """What to measure of one size, with the files for it made."""
    from gemworks.bench import cpu as bench
    from gemworks.bench import models as files

    folder.mkdir(parents=True, exist_ok=True)
    threads = threads or machine.threads()
    wanted = files.specs(size, folder, rivals, threads, twin=twin)
    specs = files.make_missing(size, wanted, folder, tokenizer or files.find_tokenizer(), console.note)
    return bench.Plan(model=size, specs=specs, threads=threads, log=folder / "workers.log", **more)


def _machine() -> dict[str, Any]:
    processor = machine.processor()
    return {
        "processor": processor.name,
        "isa": list(processor.isa),
        "usable_cores": processor.usable_cores,
        "memory_bytes": machine.memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
