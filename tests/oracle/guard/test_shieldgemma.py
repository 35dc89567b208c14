"""The guard against transformers' ShieldGemma2ForImageClassification and its processor: ids and probabilities.

transformers writes a random model to a directory, in fp32, with the official vocabulary; `Guard` reads it from there.
Theirs computes all policies of all images as one padded batch without a cache, so a prefix that is not the prompt's, or
a mask that is wrong where a policy begins, shows.
"""

import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hf_models import randomize
from PIL import Image
from transformers import (
    AutoTokenizer,
    Gemma3ImageProcessorPil,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
)

from gemworks import Guard
from gemworks.model.config import RELEASED
from gemworks.model.costs import matrix_shapes
from gemworks.model.vision_config import SIGLIP_SO400M_896
from gemworks.safety import POLICIES, Policy
from gemworks.safety.prompt import guard_prompt
from gemworks.tokenizer import Tokenizer

TOLERANCE = 1e-4
SPACES = " " * 16

# What the published template renders, written out as text.
TEMPLATE = f"""\
{{{{ bos_token }}}}{{% for message in messages %}}{{% for part in message['content'] %}}<start_of_turn>user
{{% if part['type'] == 'image' %}}<start_of_image>{{% else %}}\
You are a policy expert trying to help determine whether a generated or real image is in
{SPACES} violation of the safety policy below. Your decision must very clearly follow the specific
{SPACES} language used in the safety policy and should not include any interpretation outside of the
{SPACES} safety policy.


{SPACES}<BEGIN_SAFETY_POLICY>

{SPACES}{{{{ part['text'] }}}}

{SPACES}</END_SAFETY_POLICY>


{SPACES}Does the image violate the above policy? Your Answer must start with 'Yes' or 'No'.
{SPACES}<end_of_turn>
{{% endif %}}{{% endfor %}}<start_of_turn>model
{{{{ '' }}}}{{% endfor %}}"""

CUSTOM = {
    "weapons": "No Weapons: The image shall not show firearms,\n\nor 25 others (e.g., a  sword, \u00e9p\u00e9e).",
    "short": "No cats.",
    "spaces around": "  No dogs: none.\n",
}


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    dim: int
    layers: int
    window: int
    image: int
    patch: int
    tokens: int
    answers: tuple[int, int] | None = None  # None: those of the release


SHAPES = {
    "4b": Shape(8, 4, 16, 64, 7, 1024, 84, 14, 9),
    "prompts are longer than the window": Shape(4, 1, 16, 48, 8, 32, 64, 8, 16),
    "an image is longer than the window": Shape(4, 2, 16, 48, 6, 24, 96, 6, 64, answers=(500, 90_000)),
    "256 tokens": Shape(2, 1, 32, 32, 6, 512, 64, 4, 256),
}


def pictures():
    """Odd sizes and modes."""
    rng = np.random.default_rng(5)
    arrays = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((33, 101), (200, 7), (64, 64))]
    smooth = Image.fromarray(rng.integers(0, 256, (3, 4), dtype=np.uint8)).resize((301, 199), Image.Resampling.BICUBIC)
    return [*map(Image.fromarray, arrays), smooth]


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def saved(request, official, tmp_path_factory):
    """Return (shape, folder, their model, their processor)."""
    shape: Shape = request.param
    text = dict(
        model_type="gemma3_text",
        vocab_size=262_208,
        hidden_size=shape.dim,
        intermediate_size=2 * shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.head_dim,
        sliding_window=shape.window,
        max_position_embeddings=8192,
    )
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=shape.image,
        patch_size=shape.patch,
        vision_use_head=False,
    )
    answers = dict(zip(("yes_token_index", "no_token_index"), shape.answers or (), strict=False))
    torch.manual_seed(shape.layers)
    config = ShieldGemma2Config(text_config=text, vision_config=vision, mm_tokens_per_image=shape.tokens, **answers)
    model = ShieldGemma2ForImageClassification(config).eval()
    randomize(model, shape.dim)
    folder = tmp_path_factory.mktemp("shieldgemma")
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(official / name, folder / name)
    images = Gemma3ImageProcessorPil(size={"height": shape.image, "width": shape.image})
    tokenizer = AutoTokenizer.from_pretrained(str(official))
    processor = ShieldGemma2Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=shape.tokens)
    return shape, folder, model, processor


def test_the_prompt_is_the_processors(saved, official):
    shape, _, _, processor = saved
    tokenizer = Tokenizer.load(official)
    batch = processor(images=pictures()[:2], custom_policies=CUSTOM, return_tensors="pt")
    policies = [*POLICIES.values(), *(Policy(*one) for one in CUSTOM.items())]
    assert len(batch["input_ids"]) == 2 * len(policies)
    for row, policy in enumerate(policies * 2):
        expected = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        prompt = guard_prompt(tokenizer, policy, tokens_per_image=shape.tokens)
        assert prompt.ids == expected, policy.name
        [span] = prompt.spans
        soft = range(span.start, span.start + span.length)
        assert list(soft) == [i for i, token in enumerate(expected) if token == 262_144]


def test_three_policies_cost_little_more_than_one(saved):
    """Counted: tokens that were computed, tower runs, and both in multiply-adds at the released model's sizes."""
    shape, folder, _, _ = saved
    with Guard(folder) as guard:
        engine, eyes = guard.llm._engine, guard.llm.eyes
        assert eyes is not None
        counts = []
        for names in (["dangerous"], list(POLICIES)):
            engine.forget()
            before = engine.stats().tokens_prefilled, eyes.num_encoded
            guard.image(pictures()[len(counts)], names)
            counts.append((engine.stats().tokens_prefilled - before[0], eyes.num_encoded - before[1]))
    (tokens, runs), (tokens_of_three, runs_of_three) = counts
    assert runs == runs_of_three == 1
    assert tokens_of_three - tokens == 156, "of 409 and 419 tokens all but 336 and some are there"
    assert tokens == 158 + shape.tokens
    if shape.tokens == 256:
        assert cost(tokens_of_three, 1) / cost(tokens, 1) <= 1.3


def cost(tokens: int, runs: int) -> int:
    """Multiply-adds of so many prompt tokens and tower runs of ShieldGemma 2 4B, without the text's attention."""
    tower, text = SIGLIP_SO400M_896, RELEASED["4b"]
    patches, width = tower.num_patches, tower.model_dim
    layer = patches * width * (4 * width + 2 * tower.ffw_dim) + 2 * patches**2 * width
    return runs * tower.num_layers * layer + tokens * sum(rows * columns for rows, columns in matrix_shapes(text))


def test_the_policies_are_the_processors(saved):
    assert {name: policy.text for name, policy in POLICIES.items()} == saved[3].policy_definitions


def test_probabilities_are_theirs(saved):
    _, folder, model, processor = saved
    images = pictures()
    batch = processor(images=images, custom_policies=CUSTOM, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**batch, logits_to_keep=1).probabilities[:, 0].numpy().reshape(len(images), -1)
    assert np.ptp(theirs) > 0.05, "the cases must differ for this to say anything"
    policies = [*POLICIES.values(), *(Policy(*one) for one in CUSTOM.items())]
    with Guard(folder) as guard:
        verdicts = guard.image(images, policies)
        eyes = guard.llm.eyes
        assert eyes is not None and eyes.num_encoded == len(images)
        ours = np.array([list(verdict.probabilities.values()) for verdict in verdicts])
        alone = guard.image(images[1], policies[3]).probabilities["weapons"]
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert abs(alone - theirs[1, 3]) <= TOLERANCE
