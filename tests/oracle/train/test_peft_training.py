"""Adapters against PEFT and torch autograd on the same fp32 model: logits both ways, gradients, 20 steps of AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import Shape, configs, randomize
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import Gemma3ForCausalLM

from gemworks.model.gemma3 import build
from gemworks.train.adapters.base import held, new_base
from gemworks.train.adapters.kinds import LoRA, PromptTuning, published
from gemworks.train.adapters.merge import merge
from gemworks.train.adapters.peft import read_trained, save_adapter
from gemworks.train.adapters.prompt import prompt_ids
from gemworks.train.feed import put_batch
from gemworks.train.forward import Rows, head_rows, hidden
from gemworks.train.loop import Run, begin
from gemworks.train.recipe import Optimizer, Recipe, Schedule
from gemworks.train.step import make_step
from gemworks.train.trained import Frozen, trained_model
from gemworks.weights.names import hf_from_ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

VOCAB, T, B = 320, 24, 3
SHAPE = Shape(4, 1, 32, 64, 7, 8, 1.0, 32)
KINDS = {
    "lora": (LoRA(rank=4, alpha=8.0), {"target_modules": "all-linear"}),
    "rslora": (
        LoRA(rank=4, alpha=3.0, rslora=True, targets="q,v"),
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    ),
    "dora": (LoRA(rank=3, alpha=6.0, dora=True), {"target_modules": "all-linear", "use_dora": True}),
    "prompt": (PromptTuning(tokens=6), {}),
}


@pytest.fixture
def pair():
    """(their model, our config, its arrays)."""
    theirs, config = configs(SHAPE, VOCAB)
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(theirs).eval()
    randomize(model, theirs.hidden_size)
    state = model.state_dict()
    arrays: dict[str, np.ndarray] = {}

    def leaf(name, shape):
        arrays[name] = np.array(state[hf_from_ours(name)].numpy())
        return arrays[name]

    build(config, leaf)
    return model, config, arrays


def their_adapter(model, kind: str, seed: int = 1):
    """PEFT's model with random numbers in every parameter of the adapter."""
    adapter, fields = KINDS[kind]
    if isinstance(adapter, PromptTuning):
        told = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=adapter.tokens)
    else:
        told = LoraConfig(task_type="CAUSAL_LM", r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, **fields)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, told)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
            elif parameter.requires_grad and "lora_" in name:
                parameter.normal_(0, 0.15)
    return adapted


def recipe_of(config, adapter) -> Recipe:
    return Recipe(
        model=config,
        adapter=adapter,
        dtype="float32",
        rows=B,
        tokens=T + len(prompt_ids(adapter, config)),
        steps=20,
        optimizer=Optimizer(peak=1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=0.0),
        schedule=Schedule(kind="constant"),
    )


def base_of(config, arrays, adapter):
    return new_base(build(config, lambda name, shape: held(name, jnp.asarray(arrays[name]), "float32")), adapter)


def some_rows(recipe, seed: int = 2) -> tuple[Rows, np.ndarray]:
    """Rows of whole texts after the soft tokens, and the texts alone."""
    text = np.random.default_rng(seed).integers(3, VOCAB, (B, T)).astype(np.int32)
    first = prompt_ids(recipe.adapter, recipe.model)
    ids = np.concatenate([np.broadcast_to(np.array(first, np.int32), (B, len(first))), text], axis=1)
    mask = np.zeros(ids.shape, np.float32)
    mask[:, len(first) : -1] = 1
    position = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return Rows(ids, np.roll(ids, -1, axis=1), mask, np.ones(ids.shape, np.int32), position), text


def our_logits(recipe, params, base) -> np.ndarray:
    rows, text = some_rows(recipe)

    def compute(params, base):
        model = trained_model(recipe, params, base)
        return jnp.einsum("btd,vd->btv", hidden(model, rows), head_rows(model).weight, precision="highest")

    return np.asarray(jax.jit(compute)(params, base))[:, -text.shape[1] :]


def their_logits(model, recipe) -> np.ndarray:
    _, text = some_rows(recipe)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(text.astype(np.int64))).logits
    return logits[:, -text.shape[1] :].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_we_train_on_what_peft_saved_and_peft_reads_what_we_save(kind, pair, tmp_path):
    model, config, arrays = pair
    adapted = their_adapter(model, kind).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    adapter, params = read_trained(tmp_path / "theirs", config)
    recipe, base = recipe_of(config, adapter), base_of(config, arrays, adapter)
    got, expected = our_logits(recipe, params, base), their_logits(adapted, recipe)
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() <= 1e-5 * max(scale, 1.0), np.abs(got - expected).max()
    bigger = {name: jnp.asarray(array * 1.25) for name, array in params.items()}
    save_adapter(tmp_path / "ours", adapter, bigger, config)
    again = PeftModel.from_pretrained(adapted.unload() if kind != "prompt" else model, tmp_path / "ours").eval()
    wanted = our_logits(recipe, bigger, base)
    assert np.abs(wanted - got).max() > 1e-2
    assert np.abs(their_logits(again, recipe) - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_twenty_steps_are_theirs(kind, pair):
    """The same start, rows and AdamW: gradients within 1e-4, then every loss of 20 steps and the parameters after."""
    model, config, arrays = pair
    adapted = their_adapter(model, kind).train()
    theirs = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    adapter = KINDS[kind][0]
    recipe, base = recipe_of(config, adapter), base_of(config, arrays, adapter)
    named = {name: parameter for name, parameter in _by_our_names(theirs, config, adapter)}
    assert len(named) == len(theirs)
    start = {name: parameter.detach().numpy().copy() for name, parameter in named.items()}
    rows, text = some_rows(recipe)
    words = torch.tensor(text.astype(np.int64))
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def their_step() -> float:
        optimizer.zero_grad()
        logits = adapted(input_ids=words).logits[:, -T:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())
        loss.backward()
        return float(loss.detach())

    expected = [their_step()]

    def loss(params):
        from gemworks.train.loss import Call

        terms = recipe.method(trained_model(recipe, params, base), rows, Call(jax.random.key(0)))
        return terms.total / terms.weight

    grads = jax.jit(jax.grad(loss))({k: jnp.asarray(v) for k, v in start.items()})
    for name, parameter in named.items():
        wanted = parameter.grad.numpy()
        assert np.linalg.norm(np.asarray(grads[name]) - wanted) <= 1e-4 * np.linalg.norm(wanted), name
    optimizer.step()
    for _ in range(19):
        expected.append(their_step())
        optimizer.step()
    run = Run(recipe, None, initial=lambda: start, base=base)  # type: ignore[arg-type]
    state, step, losses = begin(run, None, None), make_step(recipe), []
    for n in range(20):
        state, seen = step(state, np.int32(n), put_batch(rows, recipe, None), Frozen(base, None))
        losses.append(float(seen.loss))
    assert expected[-1] < 0.97 * expected[0], "nothing was learnt"
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def _by_our_names(theirs, config, adapter):
    if isinstance(adapter, PromptTuning):
        yield "prompt.weight", next(iter(theirs.values()))
        return
    from gemworks.train.adapters.kinds import targeted

    ends = {"a": "lora_A", "b": "lora_B", "magnitude": "lora_magnitude_vector"}
    for matrix in targeted(adapter, config):
        for part, end in ends.items():
            if part != "magnitude" or adapter.dora:
                yield f"{matrix}.{part}", theirs[f"base_model.model.{published(matrix)}.{end}.default.weight"]


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_matrices_are_pefts(kind, dtype, pair, tmp_path):
    """merge_and_unload in the base's dtype, matrix by matrix: fp32 to its last bits, bf16 but for ties."""
    from safetensors.torch import load_file

    model, _, _ = pair
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "base")
    adapted = their_adapter(model, kind).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    whole = adapted.merge_and_unload().state_dict()
    got = load_file(tmp_path / "merged" / "model.safetensors")
    for name, array in got.items():
        expected = whole[name]
        assert array.dtype == expected.dtype
        if dtype == "float32":
            torch.testing.assert_close(array, expected, rtol=2e-6, atol=1e-6)
        else:
            share = (array != expected).float().mean()
            assert share <= 2e-3, (name, share)
