"""How does the server do: over the bare engine, next to llama-server, and with a thousand connections that wait?

    python bench/serve/run.py [--what bare,rival,idle] [--model 1b|DIR] [--quant int4-b32] [--clients 1,2,4,8,16]
        [--requests 2] [--rounds 3] [--llama-server PROGRAM] [--idle-model 270m] [--connections 1000] [--json]

What is measured and how: gemworks/bench/serve.py. Random weights are made once, in the cache (--dir: elsewhere).
Without --llama-server the server of llama-cpp-python takes its place, and is named. Ctrl-C keeps what was measured. The
last line is one JSON object.
"""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import gemworks
from gemworks import env, machine
from gemworks.bench import engine, serve
from gemworks.bench.serve_systems import Serving
from gemworks.errors import GemworksError

QUANT_FORMAT = "int4-b32+int8"  # what --quant int4-b32 makes: blocks, then embedding and head
CONTEXT = 512
SEQUENCES = 16
IDLE_CONTEXT = 32_768  # the row that is taken must stay so while a thousand connections come and go

err = Console(stderr=True)


class Shown(serve.Watch):
    """Progress on stderr: a bar in a terminal, lines elsewhere."""

    def __init__(self, bar: Progress, total: int):
        self._bar, self._task = bar, bar.add_task("starting", total=total)

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False)

    def step(self, text: str, total: int | None = None) -> None:
        self._bar.update(self._task, description=text, advance=1)
        if not self._bar.console.is_terminal:
            self.say(text)


def main(
    what: Annotated[str, typer.Option(help="Some of bare,rival,idle.")] = "bare,rival,idle",
    model: Annotated[str, typer.Option(help="A released size, or a directory with a model.")] = "1b",
    quant: Annotated[str, typer.Option(help="How ours loads it.")] = "int4-b32",
    clients: Annotated[str, typer.Option(help="Numbers of clients beside llama-server.")] = "1,2,4,8,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests of each client, one after the other.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; medians are shown.")] = 3,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of a prompt.")] = serve.PROMPT,
    answer: Annotated[int, typer.Option(min=4, help="Tokens of an answer.")] = serve.ANSWER,
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's llama-server program.")] = None,
    idle_model: Annotated[str, typer.Option(help="Model of the server with waiting connections.")] = "270m",
    connections: Annotated[int, typer.Option(min=1)] = 1000,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every system. Default: the usable cores.")] = None,
    dir: Annotated[Path | None, typer.Option(help="Where the models lie or are made. Default: the cache.")] = None,
    log: Annotated[Path, typer.Option(help="What the servers say.")] = Path("serve-bench.log"),
    json_only: Annotated[bool, typer.Option("--json", help="Print the JSON line alone.")] = False,
) -> None:
    """Measure the server."""
    names = tuple(name.strip() for name in what.split(",") if name.strip())
    folder = (dir or env.cache() / "bench").resolve()
    threads = threads or machine.usable_cores()
    found: dict[str, Any] = {}
    files = engine.find_systems(model, folder, QUANT_FORMAT, err.print, threads=threads, has_rival="rival" in names)
    is_pair = "rival" not in names or files["rival"] is not None
    serving = Serving(model=files["ours"].path, quant=quant, context=CONTEXT, sequences=SEQUENCES, threads=threads)
    idle = None
    if "idle" in names:
        own = engine.find_systems(idle_model, folder, QUANT_FORMAT, err.print, threads=threads, has_rival=False)
        idle = Serving(model=own["ours"].path, quant=quant, context=IDLE_CONTEXT, sequences=1, threads=threads)
    plan = serve.Plan(
        serving=serving,
        vocab=files["config"].vocab_size,
        names=names if is_pair else tuple(name for name in names if name != "rival"),
        rounds=rounds,
        requests=requests,
        clients=tuple(int(count) for count in clients.split(",")),
        prompt=prompt,
        answer=answer,
        rival=llama_server,
        rival_model=files["rival"].path if files["rival"] else "",
        idle=idle,
        connections=connections,
        log=log.resolve(),
    )
    interrupted = watched(plan, found)
    report = {
        "gemworks": gemworks.__version__,
        "machine": {"processor": machine.processor().name, "threads": threads, "system": platform.platform()},
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "model": files["model"],
        "quant": quant,
        "interrupted": interrupted,
        "found": found,
    }
    if not json_only:
        show(found)
    print(json.dumps(report))
    raise typer.Exit(130 if interrupted else 0)


def watched(plan: serve.Plan, found: dict[str, Any]) -> bool:
    """Measure into `found` with a bar on stderr; True where Ctrl-C ended it before its end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        try:
            serve.run(plan, found, Shown(bar, serve.steps(plan)))
        except KeyboardInterrupt:
            return True
    return False


def show(found: dict[str, Any]) -> None:
    """Print the figures as text."""
    if "bare" in found and "throughput_ratio" in found["bare"]:
        print(f"{serve.BARE_STREAMS} streams over the bare engine")
        for name in ("bare", "ours"):
            print(f"  {name:<14}{row(found['bare'][name])}")
    if "first" in found.get("bare", {}):
        first = found["bare"]["first"]
        shown = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in first["p50_s"].items())
        print(f"First token while seven write: p50 {shown}")
    if "rival" in found:
        for count, systems in found["rival"].get("clients", {}).items():
            print(f"{count} clients")
            for name, figures in systems.items():
                print(f"  {name:<14}{row(figures)}")
    if "idle" in found:
        idle = found["idle"]
        print(
            f"{idle['connections']:,} waiting connections: {idle['bytes'] / 1e6:.1f} MB, {idle['bytes_each']:,.0f} each"
        )
    for section in [*found.values(), found.get("bare", {}).get("first", {})]:
        for target in section.get("targets", ()):
            state = "met" if target["is_met"] else "MISSED"
            sign = "<=" if target["is_upper"] else ">="
            print(f"  {state:<8}{target['text']}: {target['value']:.4g} (wanted {sign} {target['bound']:g})")


def row(figures: dict[str, Any]) -> str:
    """One system's figures as a line."""
    ttft = figures["ttft_s"]
    rates = f"{figures['tokens_per_second']:8.1f} tokens/s, {figures['answer_tokens_per_second']:7.1f} of answers"
    return f"{rates}; first token p50 {1000 * ttft['p50']:.0f} ms, p95 {1000 * ttft['p95']:.0f} ms"


if __name__ == "__main__":
    try:
        typer.run(main)
    except GemworksError as error:
        err.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
