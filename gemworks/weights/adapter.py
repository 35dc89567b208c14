"""A LoRA adapter in PEFT's format, read strictly: adapter_config.json and adapter_model.safetensors in a directory.

    base_model.model.<module>.lora_A.weight    [r, in]
    base_model.model.<module>.lora_B.weight    [out, r]      the matrix becomes  W + scale * B A
    base_model.model.<module>.lora_magnitude_vector    [out]      DoRA: the length m of each of its rows

<module> is named as transformers names it, for Gemma3ForCausalLM and Gemma3ForConditionalGeneration alike (names.py).
r and the scale are the config's, a module's own where its patterns say so.

The config says which modules are adapted and the file holds them; where the two differ, one of them is not this
adapter's. What we do not compute is refused by name (adapter_config.py); so is a matrix of the vision half.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from gemworks.errors import CheckpointError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS, Target, target_shape
from gemworks.weights.adapter_config import CONFIG, WEIGHTS, LoraRecipe, check_files
from gemworks.weights.config_json import read_json
from gemworks.weights.names import IGNORED, hf_from_ours, ours_from_hf
from gemworks.weights.safetensors import NUMPY_DTYPES, SafetensorsFile

# r rank, D input width, F output width

_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_"
    r"(?:(?P<half>[AB])(?:\.default)?\.weight|(?P<length>magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
_OURS = re.compile(r"layers\.(?P<layer>[0-9]+)\.(?:attn|ffw)\.(?P<target>[a-z]+)\.weight")

_LENGTH = "magnitude_vector"

_SHOWN = 10


class LoraDelta(NamedTuple):
    """What is added to one matrix: b_Fr @ a_rD, fp32, the scale in b; with DoRA the lengths of the sum's rows."""

    a_rD: np.ndarray
    b_Fr: np.ndarray
    magnitude_F: np.ndarray | None = None


class LoraParts(NamedTuple):
    """The tensors of one adapted matrix as they are stored, in fp32. `module` is the published name."""

    module: str
    a_rD: np.ndarray
    b_Fr: np.ndarray
    magnitude_F: np.ndarray | None


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter in memory, checked against a model. `deltas`: (layer, target) -> what is added to that matrix."""

    path: Path
    deltas: Mapping[tuple[int, Target], LoraDelta] = field(repr=False)

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return max(delta.a_rD.shape[0] for delta in self.deltas.values())

    @property
    def targets(self) -> tuple[Target, ...]:
        """Which matrices of a layer it adapts, in any layer."""
        found = {target for _, target in self.deltas}
        return tuple(target for target in TARGETS if target in found)

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices in memory."""
        return sum(array.nbytes for delta in self.deltas.values() for array in delta if array is not None)

    @property
    def is_dora(self) -> bool:
        """Whether the rows of its sums have lengths of their own."""
        return any(delta.magnitude_F is not None for delta in self.deltas.values())


def read_adapter(path: str | Path, config: TextConfig) -> LoraAdapter:
    """Read the adapter in a directory, for a model of this config.

    Raises StorageError if a file cannot be read, CheckpointError if it is no LoRA adapter of such a model: every
    matrix that is missing, unknown, of another shape or not finite is named.
    """
    path = Path(path).expanduser()
    recipe, parts = read_parts(path, config)
    deltas = {
        key: LoraDelta(one.a_rD, one.b_Fr * np.float32(recipe.scale_of(one.module)), one.magnitude_F)
        for key, one in parts.items()
    }
    return LoraAdapter(path, deltas)


def read_parts(path: Path, config: TextConfig) -> tuple[LoraRecipe, dict[tuple[int, Target], LoraParts]]:
    """Return the config and the tensors of every adapted matrix by (layer, target). Raises as read_adapter does."""
    check_files(path)
    recipe = LoraRecipe.from_json(read_json(path / CONFIG), path / CONFIG)
    file = SafetensorsFile(path / WEIGHTS)
    try:
        modules = _modules(file, path / WEIGHTS)
        _check(file, modules, recipe, config, path)
        return recipe, {key: _read(file, modules[key], path) for key in sorted(modules)}
    finally:
        file.close()


@dataclass(slots=True)
class _Module:
    """One adapted matrix as the file names it, and ours."""

    name: str
    key: tuple[int, Target]
    halves: dict[str, str] = field(default_factory=dict)  # A, B and magnitude_vector -> tensor


def _modules(file: SafetensorsFile, where: Path) -> dict[tuple[int, Target], _Module]:
    """The adapted matrices of a file. Raises a CheckpointError that names every tensor that is none."""
    found: dict[tuple[int, Target], _Module] = {}
    unknown, vision, doubled = [], [], []
    for tensor in file.tensors:
        match = _TENSOR.fullmatch(tensor)
        ours = ours_from_hf(match["module"] + ".weight") if match else None
        if ours is IGNORED:
            vision.append(tensor)
            continue
        place = _OURS.fullmatch(ours) if isinstance(ours, str) else None
        if match is None or place is None or place["target"] not in TARGETS:
            unknown.append(tensor)
            continue
        key = int(place["layer"]), cast(Target, place["target"])
        module = found.setdefault(key, _Module(match["module"], key))
        half = match["half"] or match["length"]
        if half in module.halves:
            doubled.append(tensor)
        module.halves[half] = tensor
    lines = _lines("unknown", unknown) + _lines("twice", doubled)
    lines += _lines("vision", vision)
    if lines:
        hint = "Only the matrices of the text decoder's blocks can be adapted: q, k, v, o, gate, up and down."
        if vision:
            hint += "\nThis adapter changes the image encoder too: merge it into its base model with PEFT."
        raise _refused(where, len(unknown) + len(doubled) + len(vision), lines, hint)
    return found


def _check(
    file: SafetensorsFile,
    modules: dict[tuple[int, Target], _Module],
    recipe: LoraRecipe,
    config: TextConfig,
    path: Path,
) -> None:
    """Compare the file with its config and with the model; one error names everything."""
    wrong, hints = [], {}
    for module in modules.values():
        layer, target = module.key
        for half, ending in ("A", ".weight"), ("B", ".weight"), *([(_LENGTH, "")] if recipe.dora else []):
            if half not in module.halves:
                wrong.append(("missing", f"base_model.model.{module.name}.lora_{half}{ending}"))
        if not recipe.dora and _LENGTH in module.halves:
            wrong.append(("without use_dora", module.halves[_LENGTH]))
        if not recipe.adapts(module.name):
            wrong += [("not in target_modules", tensor) for tensor in module.halves.values()]
            continue
        if layer >= len(config.layers):
            wrong += [("no such layer", tensor) for tensor in module.halves.values()]
            hints["layer"] = f"The model has {len(config.layers)} layers."
            continue
        rank, (F, D) = recipe.rank_of(module.name), target_shape(config, target)
        wanted = {"A": (rank, D), "B": (F, rank), _LENGTH: (F,)}
        for half, tensor in module.halves.items():
            span = file.tensors[tensor]
            if span.shape != wanted[half]:
                wrong.append(("shape", f"{tensor}  wanted {list(wanted[half])}, got {list(span.shape)}"))
                hints["shape"] = "The adapter was made for another model: load it on its own base model."
            elif span.dtype not in NUMPY_DTYPES:
                wrong.append(("dtype", f"{tensor}  wanted {', '.join(NUMPY_DTYPES)}, got {span.dtype}"))
    wrong += [("missing", name) for name in _absent(modules, recipe, config)]
    if not modules:
        raise CheckpointError(f"{path / WEIGHTS} must hold at least one matrix of the model, and it holds none.")
    if wrong:
        lines = [line for kind in dict(wrong) for line in _lines(kind, [text for one, text in wrong if one == kind])]
        hint = "\n".join(hints.values()) or f"{CONFIG} and {WEIGHTS} are not of one adapter: fetch both again."
        raise _refused(path / WEIGHTS, len(wrong), lines, hint)


def _absent(modules: dict[tuple[int, Target], _Module], recipe: LoraRecipe, config: TextConfig) -> Iterator[str]:
    """Modules that the config adapts and the file lacks, named as the file names the others."""
    if not modules:
        return
    prefix = re.sub(r"layers\.[0-9]+\..*", "", next(iter(modules.values())).name)
    for layer in range(len(config.layers)):
        for target in TARGETS:
            half = "attn" if target in ("q", "k", "v", "o") else "ffw"
            published = hf_from_ours(f"layers.{layer}.{half}.{target}.weight")
            module = prefix + published.removeprefix("model.").removesuffix(".weight")
            if (layer, target) not in modules and recipe.adapts(module):
                yield f"base_model.model.{module}.lora_A.weight and lora_B.weight"


def _read(file: SafetensorsFile, module: _Module, path: Path) -> LoraParts:
    """The tensors of a module in fp32, copied out of the mapping."""
    arrays = {half: file.array(tensor).astype(np.float32) for half, tensor in module.halves.items()}
    for half, array in arrays.items():
        if not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise CheckpointError(
                f"{path / WEIGHTS} must hold finite numbers, and {module.halves[half]} has {count} that are not.\n"
                "The training that made it went wrong, or the file was damaged."
            )
    return LoraParts(module.name, arrays["A"], arrays["B"], arrays.get(_LENGTH))


def _lines(kind: str, names: list[str]) -> list[str]:
    more = [f"  ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"  {kind}  {name}" for name in names[:_SHOWN]] + more


def _refused(where: Path, count: int, lines: list[str], hint: str) -> CheckpointError:
    what = "1 tensor is not right" if count == 1 else f"{count} tensors are not right"
    return CheckpointError("\n".join([f"{where} must hold a LoRA adapter of this model, and {what}.", *lines, hint]))
