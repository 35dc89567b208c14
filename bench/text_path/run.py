"""How fast is the text path on ops/xla, next to transformers and to what this machine allows?

    python bench/text_path/run.py [--model 270m] [--prompt 512] [--answer 32] [--rounds 5] [--rivals transformers|none]

Random weights at the real shape, bf16. Systems take turns (A B A B ...) and medians are printed with the fraction of
the read bandwidth (decode) measured in the same process. Before timing, the next token's logits are compared. The last
line is one JSON object.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gemworks.engine.engine import Engine
from gemworks.engine.runner import Runner
from gemworks.engine.types import Request, SamplingParams
from gemworks.model import costs
from gemworks.model.config import RELEASED, TextConfig
from gemworks.model.gemma3 import build

Measure = Callable[[list[int], int], tuple[float, float]]  # (prompt, answer tokens) -> tokens/s of prefill, of decode


def random_weights(config: TextConfig) -> dict[str, np.ndarray]:
    """Return bf16 matrices of spread 1/sqrt(width), by our names."""
    rng, weights = np.random.default_rng(0), {}

    def leaf(name: str, shape: tuple[int, ...]) -> None:
        if len(shape) == 1:
            weights[name] = np.zeros(shape, np.float32)
            return
        weights[name] = np.empty(shape, ml_dtypes.bfloat16)
        for start in range(0, shape[0], 8192):
            part = weights[name][start : start + 8192]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) * shape[1] ** -0.5

    build(config, leaf)
    return weights


def read_bandwidth() -> float:
    """Return bytes/s of the fastest of ten reductions over 512 MiB by all cores."""
    data = jnp.ones(1 << 27, jnp.float32).reshape(16, -1)
    total = jax.jit(lambda x: x.max(axis=-1))
    total(data).block_until_ready()
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        total(data).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return data.nbytes / best


class Ours:
    """This package's engine."""

    def __init__(self, config: TextConfig, weights: dict[str, np.ndarray]):
        model = build(config, lambda name, _shape: jax.device_put(weights[name], may_alias=True))
        self._engine = Engine(Runner(model, context=2048))

    def measure(self, prompt: list[int], answer: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0.0, max_tokens=answer)
        handle = self._engine.submit(Request(prompt=tuple(prompt), params=params, use_cache=False))
        for _ in handle:
            pass
        return handle.timings().prefill_per_second, handle.timings().decode_per_second

    def best(self, prompt: list[int]) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=10)
        [event] = self._engine.submit(Request(prompt=tuple(prompt), params=params, use_cache=False))
        assert event.logprob is not None
        return [token for token, _ in event.logprob.top]


class Transformers:
    """Hugging Face transformers on the same weights, bf16, SDPA attention."""

    def __init__(self, config: TextConfig, weights: dict[str, np.ndarray]):
        import torch
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        from gemworks.weights.config_json import json_from_text_config
        from gemworks.weights.names import hf_from_ours

        self._torch = torch
        with torch.device("meta"):
            model = Gemma3ForCausalLM(Gemma3TextConfig(**json_from_text_config(config))).to(torch.bfloat16)
        model = model.to_empty(device="cpu")

        def tensor(array: np.ndarray):
            is_bf16 = array.dtype == ml_dtypes.bfloat16
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if is_bf16 else torch.from_numpy(array)

        state = {hf_from_ours(name): tensor(array) for name, array in weights.items()}
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        fresh = type(model.model.rotary_emb)(model.config)  # its buffers were on "meta"
        model.model.rotary_emb = fresh
        scale = model.model.embed_tokens
        scale.embed_scale = torch.tensor(scale.scalar_embed_scale)
        self._model = model.eval()

    def measure(self, prompt: list[int], answer: int) -> tuple[float, float]:
        torch = self._torch
        with torch.no_grad():
            started = time.perf_counter()
            out = self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
            prefill_s = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(answer - 1):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self._model(token, past_key_values=out.past_key_values, use_cache=True)
            decode_s = time.perf_counter() - started
        return len(prompt) / prefill_s, (answer - 1) / decode_s

    def best(self, prompt: list[int]) -> list[int]:
        with self._torch.no_grad():
            return self._model(self._torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].topk(10).indices.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="270m", choices=list(RELEASED))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", default="none", choices=["none", "transformers"])
    asked = parser.parse_args()
    config = RELEASED[asked.model]
    weights = random_weights(config)
    systems = {"gemworks xla bf16": Ours(config, weights)}
    if asked.rivals == "transformers":
        systems["transformers bf16"] = Transformers(config, weights)
    prompt = np.random.default_rng(1).integers(3, 262_144, asked.prompt).tolist()
    best = {name: system.best(prompt) for name, system in systems.items()}
    for name, tokens in best.items():
        print(f"{name}: likeliest next tokens {tokens[:5]}")
    assert len({tokens[0] for tokens in best.values()}) == 1, "the systems disagree: their times mean nothing"
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for _ in range(asked.rounds):
        for name, system in systems.items():
            runs[name].append(system.measure(prompt, asked.answer))
    bandwidth = read_bandwidth()
    token_bytes = costs.weight_bytes(config)
    report = {"model": asked.model, "machine": platform.processor() or platform.machine(), "read_gb_s": bandwidth / 1e9}
    for name, figures in runs.items():
        prefill, decode = (statistics.median(column) for column in zip(*figures, strict=True))
        share = decode * token_bytes / bandwidth
        print(
            f"{name:<20} prefill {prefill:8.1f} tokens/s   decode {decode:6.2f} tokens/s ({share:.0%} of the bandwidth)"
        )
        report[name] = {"prefill_per_second": prefill, "decode_per_second": decode, "bandwidth_share": share}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
