"""What do three policies cost beside one? Seconds, tokens computed and runs of the vision tower.

    python bench/guard/run.py (--model DIR | --tokenizer DIR) [--rounds 5] [--quant FORMAT]

With --tokenizer, a directory with Gemma 3's tokenizer.json, a ShieldGemma 2 of random numbers is made at a middle shape
whose text half costs far more than its tower: the worst case, since what policies share is above all the tower. Each
round judges a new picture by one policy and another by three, in turns. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from gemworks import Guard, machine
from gemworks.model.config import GEMMA3_1B, five_local_one_global
from gemworks.model.costs import matrix_shapes
from gemworks.model.vision_config import VisionConfig
from gemworks.safety import POLICIES
from gemworks.tokenizer import Tokenizer
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import expected_shapes, expected_vision_shapes, hf_from_ours, hf_from_vision
from gemworks.weights.safetensors_write import TensorSource, write_shards

# 12 layers of 1B's width; 256 patches become 256 soft tokens.
TEXT = replace(
    GEMMA3_1B, vocab_size=262_208, layers=five_local_one_global(12, window=1024, global_scale=8.0), max_positions=8192
)
EYES = VisionConfig(
    image_size=224, patch_size=14, model_dim=384, ffw_dim=1536, num_layers=8, num_heads=6, tokens_per_image=256
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path)
    source.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quant")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = told.model or make_model(Path(folder), told.tokenizer)
        with Guard(model, quant=told.quant) as guard:
            rows = measure(guard, told.rounds)
    one, three = rows
    ratio = three["seconds"] / one["seconds"]
    print(f"{machine.processor().name}, {machine.usable_cores()} cores; {told.model or 'random numbers, middle shape'}")
    for row in rows:
        print(
            f"{row['policies']} {'policy  ' if row['policies'] == 1 else 'policies'}  {row['seconds']:7.3f} s   "
            f"{row['tokens']:4} tokens computed   {row['tower_runs']} run of the tower"
        )
    print(f"three cost {ratio:.2f} times one in seconds, {three['tokens'] / one['tokens']:.2f} times in text tokens")
    if told.model is None:
        print(f"of the multiply-adds of one policy, the tower does {tower_share(one['tokens']):.0%}")
    print(json.dumps({"rows": rows, "ratio": ratio}))


def measure(guard: Guard, rounds: int) -> list[dict]:
    """Return a row for one policy and one for three: medians over `rounds`, after a round that is not counted."""
    rng = np.random.default_rng(0)
    engine, eyes = guard.llm._engine, guard.llm.eyes
    assert eyes is not None
    asked = (["dangerous"], list(POLICIES))
    seen: list[list[tuple[float, int, int]]] = [[], []]
    for turn in range(rounds + 1):
        for names, found in zip(asked, seen, strict=True):
            picture = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            before = engine.stats().tokens_prefilled, eyes.num_encoded
            begun = time.perf_counter()
            guard.image(picture, names)
            seconds = time.perf_counter() - begun
            if turn:
                found.append((seconds, engine.stats().tokens_prefilled - before[0], eyes.num_encoded - before[1]))
    return [
        {
            "policies": len(names),
            "seconds": statistics.median(seconds for seconds, _, _ in found),
            "tokens": max(tokens for _, tokens, _ in found),
            "tower_runs": max(runs for _, _, runs in found),
        }
        for names, found in zip(asked, seen, strict=True)
    ]


def tower_share(tokens: int) -> float:
    """Return the tower's share of the multiply-adds of one picture and so many text tokens, text attention left out."""
    patches, width = EYES.num_patches, EYES.model_dim
    tower = EYES.num_layers * (patches * width * (4 * width + 2 * EYES.ffw_dim) + 2 * patches**2 * width)
    return tower / (tower + tokens * sum(rows * columns for rows, columns in matrix_shapes(TEXT)))


def make_model(folder: Path, tokenizer: Path) -> Path:
    """Write a ShieldGemma 2 of random numbers, in bf16 and as the release names its tensors."""
    rng = np.random.default_rng(0)
    shapes = {f"model.{hf_from_ours(name, 'A')}": shape for name, shape in expected_shapes(TEXT).items()}
    vision = expected_vision_shapes(EYES, TEXT.model_dim)
    shapes |= {f"model.{hf_from_vision(name, 'A')}": shape for name, shape in vision.items()}

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape, ml_dtypes.bfloat16)
        for at in range(0, shape[0], 8192):
            values[at : at + 8192] = rng.standard_normal(values[at : at + 8192].shape, dtype=np.float32) * 0.02
        return values

    write_shards(
        folder, [TensorSource(name, "BF16", shape, lambda shape=shape: draw(shape)) for name, shape in shapes.items()]
    )
    config = {
        "model_type": "shieldgemma2",
        "text_config": json_from_text_config(TEXT),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": EYES.model_dim,
            "image_size": EYES.image_size,
            "intermediate_size": EYES.ffw_dim,
            "num_attention_heads": EYES.num_heads,
            "num_hidden_layers": EYES.num_layers,
            "patch_size": EYES.patch_size,
        },
        "mm_tokens_per_image": EYES.tokens_per_image,
        "yes_token_index": 10_784,
        "no_token_index": 3771,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    Tokenizer.load(tokenizer).save(folder)
    return folder


if __name__ == "__main__":
    main()
