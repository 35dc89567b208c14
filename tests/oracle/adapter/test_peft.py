"""Adapters that PEFT made and saved, against PEFT's own logits on the same model, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gemworks.engine.adapters import AdapterPool
from gemworks.engine.gains import row_gains
from gemworks.errors import CheckpointError
from gemworks.model.gemma3 import full_batch
from gemworks.weights.adapter import WEIGHTS, read_adapter

pytestmark = [
    # PEFT 0.21 reads a field that transformers 5.23 is about to rename.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # What is refused here, PEFT makes with a warning.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and:UserWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]

# What PEFT is asked for; every test adapter has random B too (PEFT begins with zeros).
RECIPES = {
    "q and v": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all, by name": {"r": 4, "lora_alpha": 4, "target_modules": ALL},
    "all-linear": {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"},
    "rslora": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION, "use_rslora": True},
    "a regular expression": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": r".*layers\.[0-3]\.(self_attn\.[qk]|mlp\.up)_proj",
    },
    "some layers": {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [0, 5]},
    "one layer, by its list": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "layers_to_transform": 2,
        "layers_pattern": "layers",
    },
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {"down_proj": 3, r".*\.2\.self_attn\.v_proj": 32},
    },
    "without some": {"r": 2, "lora_alpha": 4, "target_modules": ALL, "exclude_modules": ["gate_proj", "k_proj"]},
    "dora": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "use_dora": True},
    "dora, some": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["v_proj", "up_proj"],
        "use_dora": True,
        "use_rslora": True,
    },
    "its own A": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "init_lora_weights": "gaussian"},
}


@pytest.fixture
def base(random_pair):
    return random_pair("1b")


def saved(model, directory, recipe: dict, seed: int = 0):
    """Give the model an adapter with random matrices, save it, and return it beside the directory."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                if "magnitude" in name:
                    parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
                else:
                    parameter.normal_(0, 0.15)
    adapted.save_pretrained(directory)
    return adapted


def their_logits(model, ids) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids)[None])).logits[0].numpy()


def some_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 290, count)


@jax.jit
def our_logits(model, batch, adapters):
    return model.logits(model(batch, adapters=adapters)[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_pefts(recipe, base, tmp_path):
    theirs, ours, config = base
    ids = some_ids(23)
    plain = their_logits(theirs, ids)
    expected = their_logits(saved(theirs, tmp_path, RECIPES[recipe]), ids)
    assert np.abs(expected - plain).max() > 0.05, "the adapter changes nothing"
    pool = AdapterPool(config, slots=2, max_rank=16)
    adapter = read_adapter(tmp_path, config)
    slot = pool.load("one", adapter, row_gains(ours, adapter) or None)
    batch = full_batch(jnp.asarray(ids, jnp.int32), config, adapter_T=np.full(23, slot, np.int32))
    assert np.abs(np.asarray(our_logits(ours, batch, pool.adapters)) - expected).max() <= 2e-4


def test_several_adapters_and_none_in_one_batch(base, tmp_path):
    """Five texts, three adapters of different ranks and targets: each has the logits PEFT gives it alone."""
    theirs, ours, config = base
    names = ["q and v", "dora", "patterns"]
    pool = AdapterPool(config, slots=4, max_rank=16)
    expected, slots = {}, {}
    texts = [some_ids(9 + i, i) for i in range(5)]
    whose = [names[1], None, names[0], names[2], names[1]]
    plain = their_logits(theirs, texts[1])
    for i, name in enumerate(names):
        adapted = saved(theirs, tmp_path / str(i), RECIPES[name], seed=i)
        for t, text in enumerate(texts):
            if whose[t] == name:
                expected[t] = their_logits(adapted, text)
        theirs = adapted.unload()
        adapter = read_adapter(tmp_path / str(i), config)
        slots[name] = pool.load(name, adapter, row_gains(ours, adapter) or None)
    expected[1] = plain
    lengths = [len(text) for text in texts]
    batch = full_batch(
        jnp.asarray(np.concatenate(texts), jnp.int32),
        config,
        jnp.asarray(np.repeat(np.arange(5, dtype=np.int32), lengths)),
        adapter_T=np.repeat([slots[name] if name else 0 for name in whose], lengths).astype(np.int32),
    )
    got = np.split(np.asarray(our_logits(ours, batch, pool.adapters)), np.cumsum(lengths)[:-1])
    for t, part in enumerate(got):
        assert np.abs(part - expected[t]).max() <= 2e-4, whose[t]


def test_adapter_of_an_image_text_model(random_pair, tmp_path):
    """Names of Gemma3ForConditionalGeneration, as this transformers writes them and as earlier ones did."""
    theirs, ours, config = random_pair("4b", with_images=True)
    recipe = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*\.(q|v|down)_proj"}
    ids = some_ids(17)
    adapted = saved(theirs, tmp_path, recipe)
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor(ids[None]), token_type_ids=torch.zeros(1, 17, dtype=torch.long))
    pool = AdapterPool(config, slots=1, max_rank=4)

    def check():
        slot = pool.load("one", read_adapter(tmp_path, config))
        batch = full_batch(jnp.asarray(ids, jnp.int32), config, adapter_T=np.full(17, slot, np.int32))
        got = np.asarray(our_logits(ours, batch, pool.adapters))
        assert np.abs(got - expected.logits[0].numpy()).max() <= 2e-4

    check()
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / WEIGHTS)
    assert all(name.startswith("base_model.model.model.language_model.layers") for name in tensors)
    old = {name.replace("model.language_model.layers", "language_model.model.layers"): t for name, t in tensors.items()}
    save_file(old, tmp_path / WEIGHTS)
    check()


def test_adapter_of_the_image_encoder_is_refused(random_pair, tmp_path):
    theirs, _, config = random_pair("4b", with_images=True)
    saved(theirs, tmp_path, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    with pytest.raises(CheckpointError, match=r"vision  base_model\.model\.model\.vision_tower.*q_proj") as refused:
        read_adapter(tmp_path, config)
    assert "changes the image encoder too" in str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'] (whole modules"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True (biases)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_a_plain_adapter_is_refused_by_name(recipe, named, base, tmp_path):
    theirs, _, config = base
    saved(theirs, tmp_path, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | recipe)
    with pytest.raises(CheckpointError) as refused:
        read_adapter(tmp_path, config)
    assert named in str(refused.value)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_embedding_and_head_are_refused(target, base, tmp_path):
    theirs, _, config = base
    saved(theirs, tmp_path, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", target]})
    with pytest.raises(CheckpointError, match=rf"unknown  base_model\.model\..*{target}"):
        read_adapter(tmp_path, config)


def test_prompt_tuning_is_no_adapter_of_matrices(base, tmp_path):
    from peft import PromptTuningConfig

    theirs, _, config = base
    get_peft_model(theirs, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="peft_type is 'PROMPT_TUNING', not 'LORA'"):
        read_adapter(tmp_path, config)


def test_peft_reads_what_it_saved(base, tmp_path):
    """The fixture itself: a saved adapter gives the logits of the one that was saved."""
    theirs, _, _ = base
    ids = some_ids(9)
    adapted = saved(theirs, tmp_path, RECIPES["patterns"])
    expected = their_logits(adapted, ids)
    again = PeftModel.from_pretrained(adapted.unload(), tmp_path).eval()
    np.testing.assert_allclose(their_logits(again, ids), expected, atol=1e-6)
