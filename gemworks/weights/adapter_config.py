"""adapter_config.json of a LoRA adapter, as PEFT writes it: which modules it adapts, with which rank and scale.

    scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Kalajdzievski 2023, arXiv 2312.03732)

rank_pattern and alpha_pattern set r and lora_alpha of the modules they match. A field that would change what the
adapter computes and that we do not compute is refused by name: biases, whole modules saved beside, tokens. So is a
field that we do not know and that is on.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gemworks.errors import CheckpointError, StorageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SOFT_PROMPT = "PROMPT_TUNING"  # the peft_type of one

# Fields that say how it was made, where it came from, or how it is kept: no effect on what it computes.
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    "fan_in_fan_out",  # linear layers have one orientation only; PEFT ignores it there
}
_USED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "bias", "use_dora"),
}
# What a field stands for; any other field that is on is refused by its name alone.
_REFUSED = {
    "modules_to_save": "whole modules beside the low-rank matrices",
    "lora_bias": "biases",
    "trainable_token_indices": "trained embedding rows",
    "layer_replication": "replicated layers",
    "target_parameters": "parameters that are no module",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QALoRA",
}
# How A and B began does not matter, unless that moved a part of the base weights into them.
_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRecipe:
    """What adapter_config.json says: which modules, with which rank and scale."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: str | tuple[str, ...]  # a regular expression of whole names, or names and ends of names
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    layer_lists: tuple[str, ...]
    dora: bool = False  # every row of the sum has a length of its own
    dropout: float = 0.0  # in training

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: Path) -> "LoraRecipe":
        """The recipe of a config. Raises a CheckpointError that names every field we cannot follow."""
        wrong = list(_refusals(data))
        if wrong:
            raise CheckpointError(
                f"{where} must describe a LoRA adapter that we can compute, and it does not: {'; '.join(wrong)}.\n"
                "Merge the adapter into its base model with PEFT (merge_and_unload) and load that."
            )
        layers = data.get("layers_to_transform")
        targets = data["target_modules"]
        if targets == "all-linear":
            targets = r".*_proj"  # every matrix of a block and nothing else
        return cls(
            rank=data["r"],
            alpha=data["lora_alpha"],
            rslora=bool(data.get("use_rslora")),
            ranks=data.get("rank_pattern") or {},
            alphas=data.get("alpha_pattern") or {},
            targets=targets if isinstance(targets, str) else tuple(targets),
            excluded=_names(data.get("exclude_modules")),
            layers=None if layers in (None, []) else frozenset([layers] if isinstance(layers, int) else layers),
            layer_lists=tuple([lists] if isinstance(lists := data.get("layers_pattern") or (), str) else lists),
            dora=bool(data.get("use_dora")),
            dropout=float(data.get("lora_dropout") or 0.0),
        )

    def adapts(self, module: str) -> bool:
        """Whether a module is among the targets (PEFT's rules: a list matches whole names or their ends)."""
        if self.excluded and _matches(self.excluded, module):
            return False
        if not _matches(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str) or module in self.targets:
            return True
        lists = self.layer_lists or (r"[^.]*",)
        found = (re.match(rf"(?:^|.*?\.){one}\.([0-9]+)\.", module) for one in lists)
        number = next((match.group(1) for match in found if match), None)
        return number is not None and int(number) in self.layers

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices."""
        return _by_pattern(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The lora_alpha of a module."""
        return _by_pattern(self.alphas, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """What B A is multiplied by."""
        rank, alpha = self.rank_of(module), self.alpha_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def check_files(path: Path) -> None:
    """Raise StorageError or CheckpointError unless a directory has the two files of an adapter."""
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


def _names(value: str | list[str] | None) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value or ())


def _matches(wanted: str | tuple[str, ...], module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == one or module.endswith("." + one) for one in wanted)


def _by_pattern(patterns: Mapping[str, _T], module: str, default: _T) -> _T:
    """The value of the first pattern that a module ends with."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _refusals(data: Mapping[str, Any]) -> Iterator[str]:
    """What a config says that we cannot follow, each with its field."""
    if (kind := data.get("peft_type")) != "LORA":
        yield f"peft_type is {kind!r}, not 'LORA'"
        return
    for name, value in data.items():
        if name not in _USED | _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            yield f"{name} is {_short(value)}" + (f" ({_REFUSED[name]})" if name in _REFUSED else "")
    if data.get("bias", "none") != "none":
        yield f"bias is {data['bias']!r} (biases; no matrix of the model has one)"
    if data.get("init_lora_weights", True) not in _HARMLESS_INIT:
        yield f"init_lora_weights is {_short(data['init_lora_weights'])} (its base weights are not the released ones)"
    yield from _malformed(data)


def _malformed(data: Mapping[str, Any]) -> Iterator[str]:
    def is_rank(value: Any) -> bool:
        return type(value) is int and value > 0

    def is_alpha(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    def is_names(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))

    def is_layers(value: Any) -> bool:
        return type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value))

    def table(is_value) -> Any:
        return lambda value: isinstance(value, dict) and all(is_value(one) for one in value.values())

    rules = [
        ("r", is_rank, "a whole number above 0", True),
        ("lora_alpha", is_alpha, "a number", True),
        ("target_modules", lambda v: bool(v) and is_names(v), "names or a regular expression", True),
        ("exclude_modules", is_names, "names or a regular expression", False),
        ("rank_pattern", table(is_rank), "whole numbers above 0 by pattern", False),
        ("alpha_pattern", table(is_alpha), "numbers by pattern", False),
        ("layers_to_transform", is_layers, "a layer or a list of layers", False),
        ("layers_pattern", is_names, "names", False),
    ]
    wrong = [
        f"{name} must be {wanted}, and is {_short(data.get(name))}"
        for name, is_right, wanted, required in rules
        if (required or data.get(name) is not None) and not is_right(data.get(name))
    ]
    yield from wrong or _broken_patterns(data)


def _broken_patterns(data: Mapping[str, Any]) -> Iterator[str]:
    found = [(name, one) for name in ("rank_pattern", "alpha_pattern") for one in data.get(name) or ()]
    found += [(n, data[n]) for n in ("target_modules", "exclude_modules") if isinstance(data.get(n), str)]
    lists = data.get("layers_pattern") or ()
    found += [("layers_pattern", one) for one in ([lists] if isinstance(lists, str) else lists)]
    for name, pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{name} holds {pattern!r}, which is no regular expression ({error})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
