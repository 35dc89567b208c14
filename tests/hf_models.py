"""Small random Gemma 3 models of transformers, with configs of ours beside them; shared by the oracle groups."""

from typing import NamedTuple

import torch
from transformers import Gemma3TextConfig

from gemworks.model.config import TextConfig, five_local_one_global


class Shape(NamedTuple):
    """What differs between the members of the family. `factor` divides the positions of global layers."""

    heads: int
    kv_heads: int
    head_dim: int
    dim: int
    layers: int
    window: int
    factor: float
    scalar: int  # query_pre_attn_scalar
    is_tied: bool = True


def configs(shape: Shape, vocab: int) -> tuple[Gemma3TextConfig, TextConfig]:
    """Return theirs and ours. Ours is written out, not parsed: the parser has tests of its own."""
    rope = {"rope_type": "default"} if shape.factor == 1.0 else {"rope_type": "linear", "factor": shape.factor}
    theirs = Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=shape.dim,
        intermediate_size=2 * shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.scalar,
        sliding_window=shape.window,
        max_position_embeddings=512,
        rope_parameters={
            "full_attention": rope | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        tie_word_embeddings=shape.is_tied,
        attn_implementation="eager",
    )
    ours = TextConfig(
        vocab_size=vocab,
        model_dim=shape.dim,
        ffw_dim=2 * shape.dim,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_scale=shape.scalar**-0.5,
        layers=five_local_one_global(shape.layers, window=shape.window, global_scale=shape.factor),
        max_positions=512,
        tied_head=shape.is_tied,
    )
    return theirs, ours


def randomize(model: torch.nn.Module, dim: int) -> None:
    """Draw weights far enough from zero that attention and norms matter, in the order of the parameters."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if name.endswith("norm.weight") else dim**-0.5)
