"""Adapters on disk as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors in a directory.

    LoRA, DoRA, rsLoRA    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ...    weights/adapter.py
    prompt tuning         prompt_embeddings                                                     weights/soft_prompt.py

Tensors are fp32, as trained. What serving reads (`run --adapter`) is the same files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.errors import CheckpointError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS
from gemworks.train.adapters.kinds import Adapter, LoRA, PromptTuning, published, targeted
from gemworks.train.adapters.prompt import PROMPT
from gemworks.weights import soft_prompt
from gemworks.weights.adapter import LoraParts, read_parts
from gemworks.weights.adapter_config import CONFIG, WEIGHTS, LoraRecipe
from gemworks.weights.atomic import replacing
from gemworks.weights.safetensors_write import TensorSource, total_bytes, write_file
from gemworks.weights.save import write_json

_PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

_CONFIG_BYTES = 100_000  # of the config and the tensors' header, at most


def save_adapter(
    out: Path,
    adapter: Adapter,
    params: Mapping[str, Any],
    config: TextConfig,
    *,
    base_name: str = "",
    has_vision: bool = False,
    force: bool = False,
) -> None:
    """Write an adapter as the directory `out`, whole or not at all.

    base_name: the model it belongs to, for the config. has_vision: that model's class in transformers is
    Gemma3ForConditionalGeneration, whose decoder has other names. Raises ConfigError if `out` exists and `force` is
    off, StorageError if it cannot be written.
    """
    arrays = {name: np.asarray(array, np.float32) for name, array in params.items()}
    layout = "B" if has_vision else "C"
    told: dict[str, Any] = {
        "base_model_name_or_path": base_name or None,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    if isinstance(adapter, PromptTuning):
        told |= _prompt_fields(adapter, config)
        named = {soft_prompt.TENSOR: arrays[PROMPT]}
    else:
        told |= _lora_fields(adapter, config, layout)
        named = {}
        for name, array in arrays.items():
            matrix, _, part = name.rpartition(".")
            named[f"base_model.model.{published(matrix, layout)}.{_PARTS[part]}"] = array
    tensors = [TensorSource(name, "F32", array.shape, lambda array=array: array) for name, array in named.items()]
    with replacing(out, needed=total_bytes(tensors) + _CONFIG_BYTES, force=force, kind="directory") as partial:
        write_json(partial / CONFIG, told)
        write_file(partial / WEIGHTS, tensors)


def read_trained(path: str | Path, config: TextConfig) -> tuple[Adapter, dict[str, np.ndarray]]:
    """Return an adapter of PEFT's format and its parameters by our names, to be trained further.

    Raises StorageError or CheckpointError as reading it for serving does, and where its matrices have ranks or scales
    of their own, which a recipe has no words for.
    """
    path = Path(path).expanduser()
    if soft_prompt.is_soft_prompt(path):
        rows_PD = soft_prompt.read_soft_prompt(path, config).rows_PD
        return PromptTuning(tokens=len(rows_PD)), {PROMPT: rows_PD}
    recipe, parts = read_parts(path, config)
    found = {f"layers.{layer}.{_half(target)}.{target}": one for (layer, target), one in parts.items()}
    adapter = _kind_of(recipe, found, config, path)
    params: dict[str, np.ndarray] = {}
    for name in targeted(adapter, config):
        one = found[name]
        params |= {f"{name}.a": one.a_rD, f"{name}.b": one.b_Fr}
        if one.magnitude_F is not None:
            params[f"{name}.magnitude"] = one.magnitude_F
    return adapter, params


def _kind_of(recipe: LoraRecipe, found: Mapping[str, LoraParts], config: TextConfig, path: Path) -> LoRA:
    ranks = {recipe.rank_of(one.module) for one in found.values()}
    alphas = {recipe.alpha_of(one.module) for one in found.values()}
    if len(ranks) > 1 or len(alphas) > 1:
        raise CheckpointError(
            f"{path / CONFIG} must have one rank and one alpha to be trained further, and it has ranks "
            f"{sorted(ranks)} and alphas {sorted(alphas)}.\nIt can be used (run --adapter) and merged as it is."
        )
    short = [target for target in TARGETS if any(name.endswith(f".{target}") for name in found)]
    every = len(found) == len(short) * len(config.layers)
    return LoRA(
        rank=ranks.pop(),
        alpha=float(alphas.pop()),
        targets=tuple(short) if every else tuple(found),
        dora=recipe.dora,
        rslora=recipe.rslora,
        dropout=recipe.dropout,
    )


def _half(target: str) -> str:
    return "attn" if target in ("q", "k", "v", "o") else "ffw"


def _lora_fields(adapter: LoRA, config: TextConfig, layout: Any) -> dict[str, Any]:
    names = targeted(adapter, config)
    modules = [published(name, layout) for name in names]
    ends = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    # Ends of names mean every layer, and with an image encoder its layers too.
    if layout == "C" and len(modules) == len(ends) * len(config.layers):
        modules = ends
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": modules,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _prompt_fields(adapter: PromptTuning, config: TextConfig) -> dict[str, Any]:
    return {
        "peft_type": soft_prompt.KIND,
        "prompt_tuning_init": "RANDOM",
        "num_virtual_tokens": adapter.tokens,
        "token_dim": config.model_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_heads,
        "num_layers": len(config.layers),
    }
