"""The whole of an image-text model against transformers' Gemma3ForConditionalGeneration, from saved file to token.

transformers writes a random model to a directory, in fp32; the text half is read by open_checkpoint, the vision half by
LazyVision. Requests go through the engine with their spans, in one chunk and in small ones. Theirs computes a prompt in
one pass without a cache, so a mask, a ring or a page that is wrong in ours shows.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from driven_engine import DrivenEngine, greedy, resized
from hf_models import Shape, configs, randomize
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    SiglipVisionConfig,
)

from gemworks.engine.runner import Runner
from gemworks.engine.types import Request, SoftSpan
from gemworks.media import PanAndScan, prepare_picture, tower_input
from gemworks.tokenizer import Tokenizer
from gemworks.tokenizer.images import render_chat_images
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model
from gemworks.weights.vision import LazyVision

VOCAB, IMAGE_ID, FIRST_CONTROL = 320, 300, 290
TOLERANCE = 2e-4
ANSWER = 48
CONTEXT, WHOLE, SMALL = 192, 128, 16  # tokens of a sequence, and of the two sizes of chunk
CROPS = PanAndScan(min_crop_size=40)


class Eye(NamedTuple):
    """A tower: pixels of a side, of a patch's side, width, width of its MLP, layers, heads; soft tokens."""

    image: int
    patch: int
    dim: int
    ffw: int
    layers: int
    heads: int
    tokens: int
    seed: int = 0  # of the weights: one whose greedy answers are not one token again and again


# heads, kv heads, head width, model width, layers, window, factor of global layers, query scalar; and the tower
FAMILY = {
    "4b": (Shape(8, 4, 16, 64, 8, 8, 8.0, 16), Eye(84, 14, 32, 72, 2, 4, 9)),
    "one kv head, no factor": (Shape(4, 1, 32, 72, 7, 16, 1.0, 32), Eye(56, 14, 48, 64, 3, 3, 4)),
    "an image is three windows": (Shape(4, 2, 16, 48, 12, 5, 8.0, 16), Eye(64, 8, 24, 56, 2, 3, 16, seed=1)),
    "12b": (Shape(16, 8, 8, 64, 6, 11, 4.0, 8), Eye(60, 10, 40, 48, 1, 5, 4)),
    "27b, no pooling": (Shape(8, 4, 8, 96, 7, 3, 8.0, 168), Eye(32, 8, 32, 48, 2, 2, 16, seed=2)),
    "one soft token": (Shape(2, 2, 24, 48, 6, 20, 2.0, 24), Eye(56, 8, 16, 32, 2, 8, 1)),
    "heads of 72, untied": (Shape(8, 4, 16, 64, 6, 9, 8.0, 16, is_tied=False), Eye(48, 8, 144, 270, 2, 2, 9)),
}

# Tokens of text between images; PICTURES names what stands between two of them. Spans never touch: <end_of_image> and
# <start_of_image> are between them in any prompt.
LAYOUTS = {
    "first": ((0, 30), "a"),
    "middle": ((17, 20), "a"),
    "last": ((33, 0), "a"),
    "two in a row": ((9, 2, 24), "ab"),
    "three apart": ((5, 14, 3, 11), "abc"),
    "the same twice": ((6, 12, 9), "aa"),
    "pan and scan": ((4, 9, 3, 3, 12, 8), "Wb"),  # W: a wide picture, four tiles
}
PICTURES = {"a": (70, 64), "b": (31, 90), "c": (120, 100), "W": (60, 200)}  # height and width in pixels


class Prompt(NamedTuple):
    """Ids with a placeholder for each soft token, the spans of ours and the pixels of theirs."""

    ids: list[int]
    spans: tuple[SoftSpan, ...]
    pixels_BCYX: np.ndarray

    @property
    def theirs(self) -> dict:
        """Arguments of transformers' model."""
        ids = torch.tensor([self.ids])
        types = torch.zeros_like(ids)
        for span in self.spans:
            types[0, span.start : span.end] = 1
        return {"input_ids": ids, "token_type_ids": types, "pixel_values": torch.tensor(self.pixels_BCYX)}


class Watched(DrivenEngine):
    """An engine that keeps the final states of the chunks it computes, where a request asks for no token."""

    def _states(self, pending):
        states_PD, row = super()._states(pending), pending.plan.prefill
        if states_PD is not None and row is not None:
            self.chunks.append((row.start, np.asarray(states_PD)[: row.count]))
        return states_PD

    def logits(self, prompt: Prompt) -> np.ndarray:
        """Return logits_TV of a prompt; the chunks that were computed are left in `chunks`."""
        self.chunks: list[tuple[int, np.ndarray]] = []
        self.answer(Request(prompt=tuple(prompt.ids), spans=prompt.spans, kind="embed"))
        assert [start for start, _ in self.chunks] == np.cumsum([0, *(len(h) for _, h in self.chunks[:-1])]).tolist()
        h_TD = np.concatenate([h_CD for _, h_CD in self.chunks])
        return np.asarray(_logits(self._runner.model, jnp.asarray(np.pad(h_TD, ((0, CONTEXT - len(h_TD)), (0, 0))))))[
            : len(h_TD)
        ]

    def ids_of(self, prompt: Prompt) -> list[int | None]:
        """Return the greedy answer."""
        return [event.token_id for event in self.answer(greedy(prompt.ids, ANSWER, spans=prompt.spans))]


@jax.jit
def _logits(model, h_TD):
    return model.logits(h_TD)


class Pair:
    """Theirs, and ours as read from what theirs saved."""

    def __init__(self, shape: Shape, eye: Eye, folder, *, vocab: int = VOCAB, image_id: int = IMAGE_ID):
        vision = SiglipVisionConfig(
            hidden_size=eye.dim,
            intermediate_size=eye.ffw,
            num_hidden_layers=eye.layers,
            num_attention_heads=eye.heads,
            image_size=eye.image,
            patch_size=eye.patch,
            vision_use_head=False,
        )
        text, _ = configs(shape, vocab)
        config = Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=eye.tokens,
            image_token_id=image_id,
            tie_word_embeddings=shape.is_tied,
        )
        config._attn_implementation = "eager"
        torch.manual_seed(eye.seed)
        self.theirs = Gemma3ForConditionalGeneration(config).eval()
        randomize(self.theirs, shape.dim)
        self.theirs.save_pretrained(folder)
        self.eye = eye
        self.vision = LazyVision(folder)
        with open_checkpoint(folder) as checkpoint:
            self.runner = Runner(
                load_model(checkpoint), context=CONTEXT, chunks=(SMALL, WHOLE), page_size=4, num_local_pages=0
            )
        assert not self.vision.is_loaded, "text alone must not map the tower"

    def prompt(self, layout: str, seed: int = 0, *, swap: bool = False) -> Prompt:
        """Return a prompt of random text and pictures by its layout; `swap`: the tiles in the other order."""
        texts, names = LAYOUTS[layout]
        rng = np.random.default_rng(seed)
        tiles = [tile for name in names for tile in self.tiles(name)]
        tiles = tiles[::-1] if swap else tiles
        assert len(texts) == len(tiles) + 1
        ids, starts = [], []
        for i, count in enumerate(texts):
            ids += rng.integers(3, FIRST_CONTROL, count).tolist()
            if i < len(tiles):
                starts.append(len(ids))
                ids += [IMAGE_ID] * self.eye.tokens
        return self.with_spans(ids, starts, tiles)

    def tiles(self, name: str) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(ord(name))
        pixels = rng.integers(0, 256, (*PICTURES[name], 3), dtype=np.uint8)
        crops = CROPS if name == "W" else None
        return prepare_picture(pixels, pan_and_scan=crops, tile_size=self.eye.image).tiles

    def with_spans(self, ids, starts, tiles) -> Prompt:
        spans = tuple(
            SoftSpan(start=at, length=self.eye.tokens, key=tile.tobytes(), embed=lambda tile=tile: self.encode(tile))
            for at, tile in zip(starts, tiles, strict=True)
        )
        return Prompt(ids, spans, tower_input(tiles))

    def encode(self, tile: np.ndarray) -> np.ndarray:
        return np.asarray(self.vision.get()(jnp.asarray(tower_input([tile])[0])))

    def engine(self, *chunks: int) -> Watched:
        return Watched(resized(self.runner, chunks=chunks))

    def their_logits(self, **told) -> np.ndarray:
        with torch.no_grad():
            return self.theirs(**told).logits[0].numpy()

    def their_answers(self, told: list[dict]) -> list[list[int]]:
        """Return the greedy answers of several prompts, computed as one batch that is padded on the left."""
        width = max(one["input_ids"].shape[1] for one in told)
        pad = lambda key: torch.cat([torch.nn.functional.pad(one[key], (width - one[key].shape[1], 0)) for one in told])  # noqa: E731
        batch = {key: pad(key) for key in ("input_ids", "token_type_ids")}
        mask = torch.cat([torch.arange(width)[None] >= width - one["input_ids"].shape[1] for one in told])
        pixels = torch.cat([one["pixel_values"] for one in told])
        options = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            ids = self.theirs.generate(**batch, pixel_values=pixels, attention_mask=mask.long(), **options)
        return ids[:, width:].tolist()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Theirs are a thousand small products: a second thread gains nothing, and waits where others run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILY)
def pair(request, tmp_path_factory) -> Pair:
    return Pair(*FAMILY[request.param], tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(pair, layout):
    prompt = pair.prompt(layout)
    expected = pair.their_logits(**prompt.theirs)
    assert np.abs(expected).max() > 0.5, "logits too small to tell anything"
    for chunks in ((SMALL, WHOLE), (SMALL,)):
        engine = pair.engine(*chunks)
        assert np.abs(engine.logits(prompt) - expected).max() <= TOLERANCE, chunks
        lengths = [len(h_CD) for _, h_CD in engine.chunks]
        assert lengths == [len(prompt.ids)] if WHOLE in chunks else max(lengths) <= SMALL and len(lengths) > 1
        engine.check_empty()


def test_greedy_answers_are_token_for_token_the_same(pair):
    """One prompt of every layout, each such that the answer is not one token again and again, as random models like."""
    engine, prompts, ours = pair.engine(SMALL, WHOLE), [], []
    for layout in LAYOUTS:
        for seed in range(1, 41):
            prompt = pair.prompt(layout, seed)
            answer = engine.ids_of(prompt)
            if len(set(answer)) > 3:
                break
        else:
            pytest.fail("every prompt makes this model repeat itself")
        prompts.append(prompt)
        ours.append(answer)
    expected = pair.their_answers([prompt.theirs for prompt in prompts])
    for layout, prompt, answer, theirs in zip(LAYOUTS, prompts, ours, expected, strict=True):
        assert answer == theirs, layout
        assert pair.engine(SMALL).ids_of(prompt) == theirs, layout


def test_the_cases_can_tell(pair):
    """What the tests above would see: a causal mask over an image, and two images in the other order."""
    prompt = pair.prompt("two in a row")
    expected = pair.their_logits(**prompt.theirs)
    causal = pair.their_logits(**prompt.theirs | {"token_type_ids": torch.zeros(1, len(prompt.ids), dtype=torch.long)})
    if pair.eye.tokens > 1:  # one token alone sees itself either way
        assert np.abs(causal - expected).max() > 100 * TOLERANCE
    swapped = pair.their_logits(**pair.prompt("two in a row", swap=True).theirs)
    assert np.abs(swapped - expected).max() > 100 * TOLERANCE


# -- from a conversation to tokens, with the official vocabulary -----------------------------------------------------

IMAGE = {"type": "image"}
CONVERSATIONS = {
    "a picture and a question": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "Describe this."}]}],
    "two in a row, at the end": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.\n"}]},
        {"role": "user", "content": [{"type": "text", "text": "Compare\n"}, IMAGE, IMAGE]},
    ],
    "two turns": [
        {"role": "user", "content": [{"type": "text", "text": "Here"}, IMAGE, {"type": "text", "text": "is a cat."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I see."}]},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "\n\nAnd here?"}]},
    ],
}
SIZES = [(300, 700), (310, 300)]  # height and width; the first gets crops


@pytest.fixture(scope="module")
def official_pair(official, tmp_path_factory) -> Pair:
    """The rows of the released vocabulary, 262,208 of them, and little else."""
    shape, eye = Shape(4, 2, 16, 48, 6, 7, 8.0, 16), Eye(56, 14, 24, 32, 1, 3, 4)
    return Pair(shape, eye, tmp_path_factory.mktemp("saved"), vocab=262_208, image_id=262_144)


@pytest.fixture(scope="module")
def processor(official):
    config = json.loads((official / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(str(official))
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return Gemma3Processor(images, tokenizer, chat_template=config["chat_template"], image_seq_length=4)


@pytest.mark.parametrize("crops", [False, True], ids=["whole", "pan and scan"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_from_pixels_to_tokens(official_pair, official, processor, name, crops):
    """Ids, merged newlines included, pixels, logits and the answer, each side by its own means."""
    pair, messages = official_pair, CONVERSATIONS[name]
    count = sum(message["content"].count(IMAGE) for message in messages)
    rng = np.random.default_rng(5)
    pixels = [rng.integers(0, 256, (*SIZES[i], 3), dtype=np.uint8) for i in range(count)]
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    told = processor(
        images=[pixels], text=rendered, do_pan_and_scan=crops, add_special_tokens=False, return_tensors="pt"
    )
    told = {key: told[key] for key in ("input_ids", "token_type_ids", "pixel_values")}

    settings = PanAndScan() if crops else None
    pictures = [prepare_picture(one, pan_and_scan=settings, tile_size=56) for one in pixels]
    rendered = render_chat_images(
        Tokenizer.load(official), messages, [one.num_crops for one in pictures], tokens_per_image=pair.eye.tokens
    )
    assert rendered.ids == told["input_ids"][0].tolist()
    tiles = [tile for picture in pictures for tile in picture.tiles]
    prompt = pair.with_spans(rendered.ids, [span.start for span in rendered.spans], tiles)
    assert np.abs(prompt.pixels_BCYX - told["pixel_values"].numpy()).max() == 0

    expected, [answer] = pair.their_logits(**told), pair.their_answers([told])
    for chunks in ((SMALL, WHOLE), (SMALL,)):
        assert np.abs(pair.engine(*chunks).logits(prompt) - expected).max() <= TOLERANCE, chunks
        assert pair.engine(*chunks).ids_of(prompt) == answer, chunks
