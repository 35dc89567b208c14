"""This package's engine in a worker: one model, engines over it as a scenario wants them, and the System's methods."""

import asyncio
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemworks.bench.engine_load import Load, Record, Timer, ask, greedy
from gemworks.bench.engine_scenarios import SCENARIOS, Setting
from gemworks.bench.system import SystemSpec
from gemworks.engine.engine import Engine
from gemworks.engine.memory import KVPlan, plan_kv
from gemworks.engine.programs import ProgramStore
from gemworks.engine.runner import Row, Runner
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.engine.speculative import PromptLookup
from gemworks.errors import BackendError
from gemworks.model.gemma3 import Gemma3
from gemworks.quant.plan import QuantPlan
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import Loader


class OursEngine:
    """A model, and the engines that were opened over it. All of them stay: none works while another is asked."""

    def __init__(self, spec: SystemSpec):
        self._model = _load(Path(spec.path), *spec.formats)
        self.vocab = self._model.config.vocab_size
        self._programs = ProgramStore(f"bench engine {spec.path} {spec.kind}")
        self._engines: dict[tuple[KVPlan, bool], Engine] = {}
        self._room = 1, 1  # context and sequences of the engine that `streams` uses

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Say what `streams` needs room for. The largest so far stays: an engine has one size, and rows to spare."""
        self._room = max(self._room[0], context), max(self._room[1], sequences)
        return {
            "version": f"jax {jax.__version__}",
            "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(self._model)),
        }

    def open(
        self,
        *,
        context: int,
        sequences: int,
        cache_tokens: int = 0,
        speculation: bool = False,
        kv: str | None = None,
    ) -> Engine:
        """Return an engine with room for `sequences` texts of `context` tokens, its programs compiled.

        Contexts are rounded up to a power of two: programs are made for one, and scenarios share them.
        """
        config = self._model.config
        context = 1 << (context - 1).bit_length()
        plan = plan_kv(
            config,
            context=min(context, config.max_positions),
            max_sequences=sequences,
            kv_dtype=kv or "bfloat16",  # type: ignore[arg-type]
            cache_tokens=cache_tokens,
            draft=DRAFT_LENGTHS[-1] if speculation else 0,
        )
        if (plan, speculation) not in self._engines:
            runner = Runner(self._model, programs=self._programs, **plan.runner_arguments())
            guesses = (lambda run: PromptLookup(self.vocab)) if speculation else None
            engine = Engine(runner, new_proposer=guesses)
            engine.warm_up()
            self._engines[plan, speculation] = engine
        return self._engines[plan, speculation]

    def scenario(self, name: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Run one of SCENARIOS. `setting`: the fields of Setting, its load as a dict."""
        load = Load(**{**setting["load"], "mix": tuple(setting["load"]["mix"])})
        return SCENARIOS[name](self, Setting(**{**setting, "load": load}), Timer())

    def streams(self, prompts: list[list[int]], count: int) -> dict[str, float | None]:
        """Compute every prompt and `count` tokens after it, all at once; see `rates` for what comes back.

        One token more is drawn than is computed: the last one's keys are nobody's.
        """
        context, sequences = self._room
        engine, timer = self.open(context=context, sequences=sequences), Timer()

        async def all_at_once() -> list[Record]:
            requests = [greedy(ids, count + 1, use_cache=False) for ids in prompts]
            return list(await asyncio.gather(*(ask(engine, request, timer) for request in requests)))

        begun = timer.now()
        records = asyncio.run(all_at_once())
        for record in records:
            if record.error is not None:
                raise BackendError(record.error)
        return rates(records, begun, count) | {"resident_bytes": resident_bytes()}

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Return the likeliest next token and the logits of the `wanted` ones."""
        runner = Runner(self._model, context=len(ids))
        h_1D = runner.forward([Row(runner.new_sequence(), ids)])
        logits_V = np.asarray(self._model.logits(h_1D))[0]
        return int(logits_V.argmax()), logits_V[wanted].astype(float).tolist()


def rates(records: list[Record], begun: float, count: int) -> dict[str, float | None]:
    """Return seconds in all, and decoded tokens a second while every stream decoded and none had ended.

    decode_per_second is None where the first stream ended before the last one began.
    """
    last_first = max(record.times[0] for record in records)
    first_last = min(record.times[-1] for record in records)
    drawn = sum(last_first < at <= first_last for record in records for at in record.times)
    seconds = first_last - last_first
    return {
        "seconds": max(record.times[-1] for record in records) - begun,
        "prompt_seconds": last_first - begun,
        "decode_per_second": drawn / seconds if seconds > 0 else None,
    }


def resident_bytes() -> int | None:
    """Memory this process has resident now; None where it is not told."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(encoding="ascii"), re.M) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def _load(directory: Path, format: str | None, embed: str | None) -> Gemma3:
    plan = None if format is None else QuantPlan.parse(format, embed or format, [])
    with open_checkpoint(directory) as checkpoint:
        return Loader(checkpoint, quant=plan).load()
