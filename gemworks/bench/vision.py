"""gemworks bench vision: one picture to soft tokens, ours beside the exact path, the twin on XLA and the rivals.

Every system runs in a process of its own (vision_systems.py) on the same random weights (vision_files.py). In a round
each has one picture, in turn, and the int8 peak of the machine is measured before; the first round compiles and is not
counted. Answers are compared before times are: cosine of every soft token with those of the exact path, or of
transformers in fp32 where that is not measured.
"""

import contextlib
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.bench import vision_files
from gemworks.bench.child import Child
from gemworks.bench.peaks import measure
from gemworks.bench.rounds import interleaved
from gemworks.bench.vision_systems import NAMES
from gemworks.errors import BackendError, ConfigError
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig

# A few seconds in all, for tests and a first look.
SMALL = replace(
    SIGLIP_SO400M_896, image_size=112, model_dim=96, ffw_dim=208, num_layers=2, num_heads=4, tokens_per_image=4
)
SHAPES = {"real": SIGLIP_SO400M_896, "small": SMALL}

# Targets of the real shape on two cores.
TRANSFORMERS_RATIO, LLAMA_RATIO, EXTRA_BYTES = 4.0, 2.0, 1.2e9

_EXACT = ("ours fp32", "transformers float32")  # the first that is measured
_NEEDS = {"transformers float32": "transformers", "transformers bfloat16": "transformers", "llama.cpp": "llama_cpp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure: systems of NAMES, rounds, where the files lie."""

    config: VisionConfig
    systems: Sequence[str]
    folder: Path
    threads: int
    repeats: int
    log: Path
    peak_seconds: float = 0.4


def find_systems(asked: str) -> list[str]:
    """Return the systems that `asked` names: "all" (those installed) or a list. Raises ConfigError for others."""
    names = list(NAMES) if asked == "all" else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise ConfigError(f'--systems must be all or some of {", ".join(NAMES)}, got "{name}".')
        if asked != "all" and not _is_here(name):
            raise ConfigError(f"{name} is not installed here: package {_NEEDS[name]}.")
    return [name for name in names if _is_here(name)]


def run(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Make what is missing, measure in turns, and return the report. Raises BackendError where ours fails."""
    vision_files.make_vision(plan.folder, plan.config, say)
    if "llama.cpp" in plan.systems:
        vision_files.make_gguf(plan.folder, plan.config, say)
    peaks: list[float] = []

    def between() -> None:
        peaks.append(measure(plan.threads, seconds=plan.peak_seconds).int8_gmac_s or 0.0)

    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gemworks-vision-")))
        np.save(scratch / "picture.npy", picture(plan.config.image_size))
        workers = {}
        for name in plan.systems:
            say(f"loading {name}")
            try:
                workers[name] = stack.enter_context(_worker(name, plan))
            except BackendError as error:
                say(str(error))
        calls = {name: _call(worker, scratch, say) for name, worker in workers.items()}
        samples = interleaved(calls, plan.repeats, between=between, say=say, may_stop=True)
        soft = {name: np.load(_soft_file(scratch, name)) for name in samples}
    return _report(plan, samples, soft, statistics.median(peaks) if peaks else 0.0)


def multiply_adds(config: VisionConfig) -> int:
    """Return the multiply-adds of a picture: the matrices of the layers and of attention, and the patches."""
    P, D, F = config.num_patches, config.model_dim, config.ffw_dim
    layer = P * (4 * D * D + 2 * D * F) + 2 * P * P * D
    return config.num_layers * layer + P * D * config.num_channels * config.patch_size**2


def picture(size: int) -> np.ndarray:
    """Return a drawn scene, uint8 [Y, X, C]: smooth light, discs with edges, noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    light = np.stack([np.sin(x / 70 + i) + np.cos(y / (90 + 20 * i)) for i in range(3)], -1)
    image = 127 + 50 * light + rng.normal(0, 10, light.shape)
    for _ in range(30):
        at, radius = rng.integers(0, size, 2), rng.integers(1, max(2, size // 6))
        image[(x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def text(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    lines = [
        f"One picture of {report['image_size']} pixels to {report['soft_tokens']} soft tokens, "
        f"{report['gmac']:.0f} GMAC; {report['threads']} threads, int8 peak {report['int8_peak_gmac_s']:.0f} GMAC/s",
        f"{'system':<22}{'seconds':>9}{'min':>8}{'max':>8}{'CPU s':>8}{'GMAC/s':>8}{'of peak':>9}"
        f"{'ours':>8}{'extra MB':>10}{'cosine':>10}{'error':>8}",
    ]
    for name, one in report["systems"].items():
        share = f"{one['peak_share']:.0%}" if one["peak_share"] else ""
        cosine, error = ("", "") if one["cosine"] is None else (f"{one['cosine']:.5f}", f"{one['relative_error']:.4f}")
        lines.append(
            f"{name:<22}{one['seconds']:>9.2f}{min(one['values']):>8.2f}{max(one['values']):>8.2f}"
            f"{one['cpu_seconds']:>8.2f}{one['gmac_s']:>8.0f}{share:>9}{one['ours_ratio']:>7.2f}x"
            f"{one['extra_bytes'] / 1e6:>10.0f}{cosine:>10}{error:>8}"
        )
    return "\n".join(lines + [f"  {line}" for line in report["targets"]])


def _report(plan: Plan, samples, soft: dict[str, np.ndarray], peak: float) -> dict[str, Any]:
    gmac = multiply_adds(plan.config) / 1e9
    median = {name: statistics.median(values["seconds"]) for name, values in samples.items()}
    exact = next((soft[name] for name in _EXACT if name in soft), None)
    systems = {}
    for name, values in samples.items():
        systems[name] = {
            "seconds": median[name],
            "values": values["seconds"],
            "cpu_seconds": statistics.median(values["cpu_seconds"]),
            "gmac_s": gmac / median[name],
            "peak_share": gmac / median[name] / peak if peak else None,
            "ours_ratio": median[name] / median["ours"] if "ours" in median else 0.0,
            "extra_bytes": max(values["extra_bytes"]),
            "cosine": None if exact is None else _cosine(soft[name], exact),
            "relative_error": None if exact is None else _relative_error(soft[name], exact),
        }
    return {
        "bench": "vision",
        "image_size": plan.config.image_size,
        "soft_tokens": plan.config.tokens_per_image,
        "threads": plan.threads,
        "gmac": gmac,
        "int8_peak_gmac_s": peak,
        "systems": systems,
        "targets": _targets(plan.config, systems),
    }


def _targets(config: VisionConfig, systems: dict[str, dict[str, Any]]) -> list[str]:
    """What the tower is to reach at the real shape, and whether it did."""
    if config != SIGLIP_SO400M_896 or "ours" not in systems:
        return []
    theirs = {name: one["ours_ratio"] for name, one in systems.items() if name.startswith("transformers")}
    found = [(f"{TRANSFORMERS_RATIO:.0f}x {name}", ratio, TRANSFORMERS_RATIO) for name, ratio in theirs.items()]
    if "llama.cpp" in systems:
        found.append((f"{LLAMA_RATIO:.0f}x llama.cpp", systems["llama.cpp"]["ours_ratio"], LLAMA_RATIO))
    lines = [f"{'met' if ratio >= wanted else 'MISSED'}: {what}, {ratio:.2f}x" for what, ratio, wanted in found]
    extra = systems["ours"]["extra_bytes"]
    state = "met" if 0 < extra <= EXTRA_BYTES else "MISSED"
    return [*lines, f"{state}: at most {EXTRA_BYTES / 1e9} GB of extra memory, {extra / 1e9:.2f}"]


def _relative_error(soft: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(soft - exact) / np.linalg.norm(exact))


def _cosine(soft: np.ndarray, exact: np.ndarray) -> float:
    """The smallest cosine of two soft tokens of the same place."""
    sizes = np.linalg.norm(soft, axis=-1) * np.linalg.norm(exact, axis=-1)
    return float(((soft * exact).sum(-1) / sizes).min())


def _is_here(name: str) -> bool:
    packages = [_NEEDS[name]] if name in _NEEDS else []
    packages += {"llama.cpp": ["gguf"], "transformers": ["torch"]}.get(name.split()[0], [])
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _soft_file(scratch: Path, name: str) -> Path:
    return scratch / f"{name.replace(' ', '-')}.npy"


def _call(worker: Child, scratch: Path, say: Callable[[str], None]):
    def call(round: int) -> dict[str, float]:
        say(f"round {round}: {worker.name}")
        return worker.ask({"picture": str(scratch / "picture.npy"), "out": str(_soft_file(scratch, worker.name))})

    return call


@contextlib.contextmanager
def _worker(name: str, plan: Plan) -> Iterator[Child]:
    """A loaded system. Raises BackendError where it cannot be loaded; what it said is in plan.log."""
    changes = {
        "GEMWORKS_THREADS": str(plan.threads),
        "GEMWORKS_BACKEND": "xla" if name == "xla" else None,
        "OMP_NUM_THREADS": str(plan.threads),
    }
    command = [sys.executable, "-m", "gemworks.bench.vision_systems", name, str(plan.folder), str(plan.threads)]
    with Child(command, name=name, log=plan.log, changes=changes) as worker:
        worker.reply()
        yield worker
