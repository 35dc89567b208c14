"""Prompts with images on a vocabulary of 305 pieces; against transformers: tests/oracle/vision."""

import pytest

from gemworks.errors import RequestError
from gemworks.tokenizer import Tokenizer, continue_chat, render_chat
from gemworks.tokenizer.chat import Place
from gemworks.tokenizer.images import (
    ImageSpan,
    continue_chat_images,
    image_parts,
    num_image_tokens,
    render_chat_images,
    render_plain_images,
)

IMAGE = {"type": "image", "image": "a.png"}
NAMES = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def seeing(small_lists):
    """The small vocabulary with the three image tokens."""
    pieces, scores, types = small_lists
    return Tokenizer.from_vocabulary([*pieces, *NAMES], [*scores, *[-1000.0] * 3], [*types, *[3] * 3])


def read(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_control=False)


def test_an_image_is_spelled_out_and_spanned(seeing):
    prompt = render_chat_images(seeing, [{"role": "user", "content": [IMAGE, text("hello")]}], [0], tokens_per_image=3)
    image = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    wanted = f"<bos><start_of_turn>user\n{image}hello<end_of_turn>\n<start_of_turn>model\n"
    assert read(seeing, prompt.ids) == wanted
    soft = [i for i, token in enumerate(prompt.ids) if token == seeing.id_of(NAMES[2])]
    assert prompt.spans == (ImageSpan(soft[0], 3, 0),)
    # "user" and three newlines: those of the header and of the image are one token
    assert seeing.id_of("\n\n\n") in prompt.ids[: soft[0]]


def test_crops_are_announced_and_counted(seeing):
    said = [{"role": "user", "content": [text("a"), IMAGE, IMAGE]}]
    prompt = render_chat_images(seeing, said, [2, 0], tokens_per_image=2, add_generation_prompt=False)
    one = "\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n"
    words = f"Here is the original image {one} and here are some crops to help you see better {one} {one}"
    assert read(seeing, prompt.ids) == f"<bos><start_of_turn>user\na{words}{one}<end_of_turn>\n"
    assert [span.image for span in prompt.spans] == [0, 1, 2, 3]
    assert sum(num_image_tokens(n, tokens_per_image=2) for n in (2, 0)) == 2 * len(prompt.spans)
    # The newlines after one image and before the next are one text, which splits otherwise than two.
    between = prompt.ids[prompt.spans[2].start + 3 : prompt.spans[3].start - 1]
    assert between == seeing.encode("\n\n\n\n") != 2 * seeing.encode("\n\n")


def test_without_images_nothing_changes(seeing):
    first, answer = {"role": "user", "content": " hello "}, {"role": "assistant", "content": "the\n"}
    system = {"role": "system", "content": "in\n"}
    messages = [system, first, answer, first]
    for generation in (True, False):
        prompt = render_chat_images(seeing, messages, [], add_generation_prompt=generation)
        assert prompt.ids == render_chat(seeing, messages, add_generation_prompt=generation)
        assert prompt.spans == ()
    assert continue_chat_images(seeing, [first], []).ids == continue_chat(seeing, [first])


def test_raw_prompts_have_no_turns(seeing):
    prompt = render_plain_images(seeing, ["hello", Place.IMAGE], [0], tokens_per_image=1)
    assert read(seeing, prompt.ids) == "<bos>hello\n\n<start_of_image><image_soft_token><end_of_image>\n\n"


def test_images_are_listed_in_the_order_of_the_prompt():
    other = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [IMAGE, text("a"), other]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [other]},
    ]
    assert image_parts(messages) == [
        ("messages[1].content[0]", IMAGE),
        ("messages[1].content[2]", other),
        ("messages[3].content[0]", other),
    ]


def test_a_vocabulary_without_the_placeholder_gets_one(small_lists, seeing):
    """GGUF files end before it."""
    pieces, scores, types = small_lists
    short = Tokenizer.from_vocabulary([*pieces, *NAMES[:2]], [*scores, *[-1000.0] * 2], [*types, 3, 3])
    said = ["hello", Place.IMAGE]
    assert render_plain_images(short, said, [0]) == render_plain_images(seeing, said, [0])


@pytest.mark.parametrize("crops", [[], [0, 0]])
def test_every_image_needs_its_place(seeing, crops):
    with pytest.raises(RequestError, match=f"a place for every image, got 1 for {len(crops)} images"):
        render_chat_images(seeing, [{"role": "user", "content": [IMAGE]}], crops)


def test_a_model_without_eyes_says_so(small):
    with pytest.raises(RequestError, match="reads text only"):
        render_chat_images(small, [{"role": "user", "content": [IMAGE]}], [0])
    with pytest.raises(RequestError, match=r"messages\[0\].content\[0\]: an image needs a model with eyes"):
        render_chat(small, [{"role": "user", "content": [IMAGE]}])


def test_a_system_message_holds_no_image(seeing):
    with pytest.raises(RequestError, match=r"messages\[0\].content\[0\]: an image"):
        image_parts([{"role": "system", "content": [IMAGE]}, {"role": "user", "content": "a"}])
    with pytest.raises(RequestError, match="must begin a conversation"):
        continue_chat_images(seeing, [{"role": "system", "content": "a"}], [])
