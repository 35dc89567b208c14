"""transformers' Gemma 3 on torch as a system of bench/train: python -m bench.train.rival.

The usual loop: fp32 parameters, autocast for bfloat16, sdpa attention, the model's own loss, fused AdamW, clipping.
"""

import contextlib
import resource
import time
from typing import Any

import torch

from bench.train.answering import answer_calls
from bench.train.shapes import Shape
from gemworks import machine
from gemworks.train.state import random_params
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import hf_from_ours

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_kept: dict[str, Any] = {}


def peak(dtype: str, seconds: float = 2.0) -> dict[str, Any]:
    """Square products, the best of several."""
    size = 1024 if DEVICE == "cpu" else 8192
    a = torch.ones((size, size), dtype=getattr(torch, dtype), device=DEVICE)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        a @ a
        _wait()
        best = min(best, time.perf_counter() - begun)
    return {"flops": 2 * size**3 / best}


def made(timed: Shape) -> Any:
    """Return the model with our weights, to be trained; the layers of "1b" are computed again for the gradient."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **json_from_text_config(timed.config) | {"attn_implementation": "sdpa", "use_cache": False}
    )
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    given = {hf_from_ours(k): torch.from_numpy(v) for k, v in random_params(timed.config, 0).items()}
    model.load_state_dict(given, strict=False, assign=True)
    model.tie_weights()
    fresh = Gemma3ForCausalLM._from_config(_one_of_each_layer(config)).model
    model.model.rotary_emb = fresh.rotary_emb
    model.model.embed_tokens.embed_scale = torch.tensor(timed.config.model_dim**0.5)
    missing = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if p.is_meta]
    assert not missing, missing
    model.to(DEVICE).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if timed.name == "1b":
        model.gradient_checkpointing_enable()
    return model


def load(shape: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Make the model, and do the first steps."""
    timed = Shape(**shape)
    model = made(timed)
    ids, targets = (torch.tensor(one, dtype=torch.long, device=DEVICE) for one in timed.batch())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    _kept.update(model=model, ids=ids, targets=targets, optimizer=optimizer, dtype=dtype)
    loss = step()["loss"]
    step()
    layers = "layers computed again" if timed.name == "1b" else "layers kept"
    how = f"{DEVICE}, {torch.get_num_threads()} threads, {layers}"
    return {"loss": loss, "how": how, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def step() -> dict[str, Any]:
    """One step."""
    begun = time.perf_counter()
    is_half = _kept["dtype"] == "bfloat16"
    with torch.autocast(DEVICE, torch.bfloat16) if is_half else contextlib.nullcontext():
        logits = _kept["model"](_kept["ids"], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), _kept["targets"].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(_kept["model"].parameters(), 1.0)
    _kept["optimizer"].step()
    _kept["optimizer"].zero_grad(set_to_none=True)
    _wait()
    return {"seconds": time.perf_counter() - begun, "loss": float(loss.detach())}


def _one_of_each_layer(config: Any) -> Any:
    """The config of a model that costs nothing to make: for what is computed when one is made."""
    small = type(config)(**config.to_dict())
    small.layer_types = sorted(set(small.layer_types))  # each kind has frequencies of its own
    small.num_hidden_layers, small.vocab_size = len(small.layer_types), 8
    small.intermediate_size, small.pad_token_id = 8, 0
    return small


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    torch.set_num_threads(machine.usable_cores())
    answer_calls({"peak": peak, "load": load, "step": step})
