"""Prompts with images against transformers' Gemma3Processor with the official tokenizer: ids, spans, counts."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, Gemma3ImageProcessorPil, Gemma3Processor

from gemworks.media import PanAndScan, prepare_picture
from gemworks.tokenizer import Tokenizer, render_chat
from gemworks.tokenizer.chat import Place
from gemworks.tokenizer.images import (
    continue_chat_images,
    image_parts,
    num_image_tokens,
    render_chat_images,
    render_plain_images,
)

SOFT = 262_144
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


USER_TURNS = {
    "first": [IMAGE, text("Describe this.")],
    "last": [text("Describe this:"), IMAGE],
    "middle": [text("Here"), IMAGE, text("is a cat.")],
    "two in a row": [IMAGE, IMAGE, text("Which is larger?")],
    "two apart": [IMAGE, text("and"), IMAGE],
    "alone": [IMAGE],
    "newlines around": [text("one\n\nline"), IMAGE, text("two\nlines")],
    "spaces around": [text("  a  "), IMAGE, text("  b  ")],
    "three and words": [text("1"), IMAGE, text("2"), IMAGE, text("3"), IMAGE, text("?")],
}
# (width, height) of as many pictures as a turn has; wide ones get crops.
SIZES = [(1200, 500), (300, 310), (400, 1100)]


@pytest.fixture(scope="module")
def processor(official):
    config = json.loads((official / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(str(official))
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(images, tokenizer, chat_template=config["chat_template"])


@pytest.fixture(scope="module")
def ours(official):
    return Tokenizer.load(official)


def pictures(count):
    return [np.full((SIZES[i][1], SIZES[i][0], 3), 40 * i, np.uint8) for i in range(count)]


def their_prompt(processor, messages, images, crops, generation=True):
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    out = processor(images=[images] if images else None, text=rendered, do_pan_and_scan=crops, add_special_tokens=False)
    return list(out["input_ids"][0]), out


def num_crops(images, crops):
    settings = PanAndScan() if crops else None
    return [prepare_picture(image, pan_and_scan=settings, tile_size=28).num_crops for image in images]


def check_spans(prompt, num_images):
    """Every soft token is in exactly one span, 256 long, between the borders; images are numbered in order."""
    covered = [i for span in prompt.spans for i in range(span.start, span.start + span.length)]
    assert covered == [i for i, token in enumerate(prompt.ids) if token == SOFT]
    assert [span.image for span in prompt.spans] == list(range(num_images))
    for span in prompt.spans:
        assert span.length == 256
        assert prompt.ids[span.start - 1] == 255_999 and prompt.ids[span.start + span.length] == 256_000


@pytest.mark.parametrize("crops", [False, True], ids=["whole", "pan and scan"])
@pytest.mark.parametrize("said", USER_TURNS.values(), ids=USER_TURNS)
def test_ids_are_the_processors(processor, ours, said, crops):
    messages = [{"role": "user", "content": said}]
    images = pictures(said.count(IMAGE))
    expected, out = their_prompt(processor, messages, images, crops)
    counts = num_crops(images, crops)
    prompt = render_chat_images(ours, messages, counts)
    assert prompt.ids == expected
    check_spans(prompt, len(out["pixel_values"]))
    assert len(prompt.spans) * 256 == sum(num_image_tokens(n) for n in counts)


@pytest.mark.parametrize("crops", [False, True], ids=["whole", "pan and scan"])
def test_ids_of_a_long_conversation(processor, ours, crops):
    """A system message, images in several turns, and one in an answer."""
    messages = [
        {"role": "system", "content": [text("Be brief.\n")]},
        {"role": "user", "content": [IMAGE, text("What is this?\n\n")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [text("And this?"), IMAGE]},
        {"role": "assistant", "content": [text("A dog, as here:"), IMAGE]},
        {"role": "user", "content": [text("Thanks.")]},
    ]
    images = pictures(3)
    expected, _ = their_prompt(processor, messages, images, crops)
    prompt = render_chat_images(ours, messages, num_crops(images, crops))
    assert prompt.ids == expected
    assert [where for where, _ in image_parts(messages)] == [
        "messages[1].content[0]",
        "messages[3].content[1]",
        "messages[4].content[1]",
    ]


def test_a_continued_conversation_equals_a_rendered_one(processor, ours):
    said = [{"role": "user", "content": [IMAGE, text("Hello!")]}, {"role": "assistant", "content": [text("Hi.")]}]
    new = [{"role": "user", "content": [IMAGE, text("Fine.")]}]
    images = pictures(2)
    expected, _ = their_prompt(processor, said + new, images, True)
    first = render_chat_images(ours, said[:1], num_crops(images[:1], True))
    second = continue_chat_images(ours, new, num_crops(images[1:], True))
    answer = ours.encode("Hi.")
    assert first.ids + answer + second.ids == expected
    offset = len(first.ids) + len(answer)
    starts = [span.start for span in first.spans] + [span.start + offset for span in second.spans]
    assert starts == [i for i, token in enumerate(expected) if token == SOFT][::256]


@pytest.mark.parametrize("crops", [False, True], ids=["whole", "pan and scan"])
def test_raw_prompts_of_pretrained_models(processor, ours, crops):
    images = pictures(2)
    out = processor(images=[images], text="A photo: <start_of_image> of\n<start_of_image>", do_pan_and_scan=crops)
    pieces = ["A photo: ", Place.IMAGE, " of\n", Place.IMAGE]
    assert render_plain_images(ours, pieces, num_crops(images, crops)).ids == list(out["input_ids"][0])


def test_without_images_the_ids_are_those_of_render_chat(ours):
    messages = [{"role": "user", "content": " Hello!\n"}]
    assert render_chat_images(ours, messages, []).ids == render_chat(ours, messages)


def test_the_specified_ids(ours):
    """Spec 17."""
    prompt = render_chat_images(ours, [{"role": "user", "content": [IMAGE, text("Describe this.")]}], [0])
    head = [2, 105, 2364, 109, 255_999]
    tail = [256_000, 108, 82_858, 672, 236_761, 106, 107, 105, 4368, 107]
    assert prompt.ids == head + [SOFT] * 256 + tail
    assert ours.encode("Here is the original image \n\n") == [8291, 563, 506, 3303, 2471, 236_743, 108]


def test_what_users_type_is_no_image(ours):
    """Unlike transformers, which takes a typed <start_of_image> for a place of an image."""
    prompt = render_chat_images(ours, [{"role": "user", "content": [text("<start_of_image>"), IMAGE]}], [0])
    assert prompt.ids.count(255_999) == 1
    assert len(prompt.spans) == 1
