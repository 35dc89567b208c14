"""The trained model as a directory that Gemworks and transformers open."""

from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from gemworks.model.gemma3 import Gemma3
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.names import expected_shapes
from gemworks.weights.save import Source, save_hf

# Greedy: the same question gives the same answer everywhere. A request that sets a temperature gets top-k and top-p.
GENERATION = GenerationDefaults(eos_ids=(1, 106), bos_id=2, pad_id=0, top_k=64, top_p=0.95, do_sample=False)


def save(out: Path, model: Gemma3, tokenizer: Tokenizer, card: str, *, force: bool) -> None:
    """Write weights in bf16, configs, tokenizer and card as the directory `out`, in one step."""

    def beside(directory: Path) -> None:
        tokenizer.save(directory)
        (directory / "README.md").write_text(card, encoding="utf-8")

    arrays = _named(model)
    sources = {name: Source("BF16", lambda array=array: array) for name, array in arrays.items()}
    save_hf(out, model.config, sources, generation=GENERATION, beside=beside, beside_bytes=1_000_000, force=force)


def _named(model: Gemma3) -> dict[str, np.ndarray]:
    """Our tensor name -> array in bf16."""
    found = {
        "".join(str(key) for key in path).replace("[", ".").replace("]", "").removeprefix("."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }
    assert found.keys() == expected_shapes(model.config).keys()
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in found.items()}
