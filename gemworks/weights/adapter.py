"""A LoRA adapter in PEFT's format, read strictly: adapter_config.json and adapter_model.safetensors in a directory.

    base_model.model.<module>.lora_A.weight    [r, in]
    base_model.model.<module>.lora_B.weight    [out, r]      the matrix becomes  W + scale * B A

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

from gemworks.errors import CheckpointError, StorageError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS, Target, target_shape
from gemworks.weights.adapter_config import LoraRecipe
from gemworks.weights.config_json import read_json
from gemworks.weights.names import IGNORED, hf_from_ours, ours_from_hf
from gemworks.weights.safetensors import NUMPY_DTYPES, SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# r rank, D input width, F output width

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_OURS = re.compile(r"layers\.(?P<layer>[0-9]+)\.(?:attn|ffw)\.(?P<target>[a-z]+)\.weight")

_SHOWN = 10


class LoraDelta(NamedTuple):
    """What is added to one matrix: b_Fr @ a_rD, fp32, the scale in b."""

    a_rD: np.ndarray
    b_Fr: np.ndarray


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
        return sum(array.nbytes for delta in self.deltas.values() for array in delta)


def read_adapter(path: str | Path, config: TextConfig) -> LoraAdapter:
    """Read the adapter in a directory, for a model of this config.

    Raises StorageError if a file cannot be read, CheckpointError if it is no LoRA adapter of such a model: every
    matrix that is missing, unknown, of another shape or not finite is named.
    """
    path = Path(path).expanduser()
    _check_files(path)
    recipe = LoraRecipe.from_json(read_json(path / CONFIG), path / CONFIG)
    file = SafetensorsFile(path / WEIGHTS)
    try:
        modules = _modules(file, path / WEIGHTS)
        _check(file, modules, recipe, config, path)
        deltas = {module.key: _read(file, module, recipe, path) for module in modules.values()}
    finally:
        file.close()
    return LoraAdapter(path, dict(sorted(deltas.items())))


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise StorageError(f"{path} must be the directory of an adapter, and there is no such directory.")
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} must hold {CONFIG} to be an adapter, and it does not.")
    if (path / WEIGHTS).is_file():
        return
    if (path / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{path} holds adapter_model.bin, which is pickled code and is not run.\n"
            f"Save it as {WEIGHTS}: load it with PEFT and call save_pretrained(safe_serialization=True)."
        )
    raise CheckpointError(f"{path} must hold {WEIGHTS} beside {CONFIG}, and it does not.\nFetch the file.")


@dataclass(slots=True)
class _Module:
    """One adapted matrix as the file names it, and ours."""

    name: str
    key: tuple[int, Target]
    halves: dict[str, str] = field(default_factory=dict)  # A and B -> tensor


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
        if match["half"] in module.halves:
            doubled.append(tensor)
        module.halves[match["half"]] = tensor
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
        for half in "AB":
            if half not in module.halves:
                wrong.append(("missing", f"base_model.model.{module.name}.lora_{half}.weight"))
        if not recipe.adapts(module.name):
            wrong += [("not in target_modules", tensor) for tensor in module.halves.values()]
            continue
        if layer >= len(config.layers):
            wrong += [("no such layer", tensor) for tensor in module.halves.values()]
            hints["layer"] = f"The model has {len(config.layers)} layers."
            continue
        rank, (F, D) = recipe.rank_of(module.name), target_shape(config, target)
        wanted = {"A": (rank, D), "B": (F, rank)}
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


def _read(file: SafetensorsFile, module: _Module, recipe: LoraRecipe, path: Path) -> LoraDelta:
    """The two matrices in fp32, copied out of the mapping, the scale in B."""
    a_rD, b_Fr = (file.array(module.halves[half]).astype(np.float32) for half in "AB")
    b_Fr *= np.float32(recipe.scale_of(module.name))
    for half, array in (("A", a_rD), ("B", b_Fr)):
        if not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise CheckpointError(
                f"{path / WEIGHTS} must hold finite numbers, and {module.halves[half]} has {count} that are not.\n"
                "The training that made it went wrong, or the file was damaged."
            )
    return LoraDelta(a_rD, b_Fr)


def _lines(kind: str, names: list[str]) -> list[str]:
    more = [f"  ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"  {kind}  {name}" for name in names[:_SHOWN]] + more


def _refused(where: Path, count: int, lines: list[str], hint: str) -> CheckpointError:
    what = "1 tensor is not right" if count == 1 else f"{count} tensors are not right"
    return CheckpointError("\n".join([f"{where} must hold a LoRA adapter of this model, and {what}.", *lines, hint]))
