"""Pictures through the Python API: which prompt they become, what is computed, and what is refused."""

import asyncio
import base64
import io
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from seeing_model import EYES, save_seeing_model, some_picture
from text_model import save_text_model

from gemworks import LLM, media
from gemworks.errors import CheckpointError, RequestError
from gemworks.media import PanAndScan, prepare_picture, tower_input
from gemworks.weights.vision import load_vision

N = EYES.tokens_per_image
IMAGE = "\n\n<start_of_image>" + "<image_soft_token>" * N + "<end_of_image>\n\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_seeing_model(tmp_path_factory.mktemp("seeing"), layers=(4, 5))


@pytest.fixture(scope="module")
def llm(folder) -> LLM:
    return LLM(folder, context=256, max_sequences=2)


@pytest.fixture(scope="module")
def blind(tmp_path_factory) -> LLM:
    return LLM(save_text_model(tmp_path_factory.mktemp("blind") / "text"), context=64, max_sequences=1)


def png(image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def shown(*pieces):
    """A user's message of texts and pictures."""
    kinds = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in pieces]
    return {"role": "user", "content": kinds}


def key_of(image, **options) -> str:
    return prepare_picture(image, tile_size=EYES.image_size, **options).keys[0]


def ids_of(llm, text: str) -> tuple[int, ...]:
    """The ids of a prompt in which the images were expanded as text, as the published processor does it."""
    return tuple(llm.tokenizer.encode(text, control=True))


def answer(llm, messages, **told):
    return llm.chat(messages, temperature=0.0, max_tokens=6, logprobs=True, **told)


def scores(completion) -> np.ndarray:
    return np.array([one.logprob for one in completion.logprobs])


def test_every_kind_of_part_is_the_same_picture(llm, tmp_path):
    image = some_picture(1)
    path = tmp_path / "my picture.png"
    path.write_bytes(png(image))
    url = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    parts = [
        {"type": "image", "image": image},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image", "image": png(image)},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": url},
        {"type": "image", "base64": base64.b64encode(png(image)).decode()},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
        {"type": "image", "image": prepare_picture(image, tile_size=EYES.image_size)},
    ]
    for part in parts:
        request = llm.prepare([{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]).request
        assert [span.key for span in request.spans] == [key_of(image)], part["type"]
        assert request.prompt == ids_of(
            llm, f"<bos><start_of_turn>user\n{IMAGE}What is it?<end_of_turn>\n<start_of_turn>model\n"
        )


def test_pictures_of_every_turn_stand_in_their_order(llm):
    one, two, three = some_picture(1), some_picture(2, 40, 90), some_picture(3)
    request = llm.prepare(
        [
            shown("Compare", one, "with", two),
            {"role": "assistant", "content": "They differ."},
            shown(three, two, "And these?"),
        ]
    ).request
    assert request.prompt == ids_of(
        llm,
        f"<bos><start_of_turn>user\nCompare{IMAGE}with{IMAGE}<end_of_turn>\n<start_of_turn>model\nThey differ."
        f"<end_of_turn>\n<start_of_turn>user\n{IMAGE}{IMAGE}And these?<end_of_turn>\n<start_of_turn>model\n",
    )
    assert [span.key for span in request.spans] == [key_of(image) for image in (one, two, three, two)]
    soft = llm.tokenizer.id_of("<image_soft_token>")
    for span in request.spans:
        assert set(request.prompt[span.start : span.end]) == {soft} and span.length == N
        assert request.prompt[span.start - 1] == llm.tokenizer.id_of("<start_of_image>")


def test_a_span_gives_what_the_tower_makes_of_its_tile(llm, folder):
    image = some_picture(4)
    request = llm.prepare([shown(image, "?")]).request
    pixels = tower_input([np.asarray(image.resize((56, 56), Image.Resampling.BILINEAR))])[0]
    expected = np.asarray(load_vision(folder)(jnp.asarray(pixels)))
    np.testing.assert_allclose(request.spans[0].embed(), expected, atol=1e-6)
    assert expected.shape == (N, 64)


@pytest.mark.parametrize(
    ("told", "detail", "crops"),
    [
        ({}, None, 0),
        ({"pan_and_scan": False}, None, 0),
        ({"pan_and_scan": True}, None, 3),
        ({"pan_and_scan": PanAndScan(max_crops=2)}, None, 2),
        ({}, "high", 3),
        ({}, "low", 0),
        ({"pan_and_scan": PanAndScan(max_crops=2)}, "high", 2),
    ],
)
def test_pan_and_scan_adds_crops(llm, told, detail, crops):
    image = some_picture(5, 1000, 300)
    part = {"type": "image", "image": image} | ({"detail": detail} if detail else {})
    request = llm.prepare([{"role": "user", "content": [part]}], **told).request
    whole = f"Here is the original image {IMAGE} and here are some crops to help you see better " if crops else IMAGE
    text = f"<bos><start_of_turn>user\n{whole}{' '.join([IMAGE] * crops)}<end_of_turn>\n<start_of_turn>model\n"
    assert request.prompt == ids_of(llm, text)
    width = -(-1000 // crops) if crops else 0
    boxes = [(i * width, 0, min((i + 1) * width, 1000), 300) for i in range(crops)]
    assert [span.key for span in request.spans] == [key_of(image), *(key_of(image.crop(box)) for box in boxes)]


def test_the_answer_depends_on_the_picture_and_counts_its_tokens(llm):
    messages = [shown(some_picture(6), "What is it?")]
    first, other = answer(llm, messages), answer(llm, [shown(some_picture(7), "What is it?")])
    assert np.abs(scores(first) - scores(other)).max() > 0.01
    assert first.image_tokens == N and first.prompt_tokens == len(llm.prepare(messages).request.prompt)
    assert first.encode_s > 0


def test_streamed_is_not_streamed(llm):
    messages = [shown(some_picture(8), "What?", some_picture(9))]
    whole = answer(llm, messages)
    chunks = list(llm.stream(messages, temperature=0.0, max_tokens=6, logprobs=True))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].completion.token_ids == whole.token_ids
    assert chunks[-1].completion.image_tokens == 2 * N

    async def read():
        return [chunk async for chunk in llm.astream(messages, temperature=0.0, max_tokens=6)]

    assert asyncio.run(read())[-1].completion.text == whole.text


def test_conversations_with_pictures_at_once_answer_as_alone(llm):
    asked = [
        [shown(some_picture(10), "What is it?")],
        [shown("Look at", some_picture(11), "now")],
    ]
    alone = [answer(llm, messages, use_cache=False) for messages in asked]
    together = answer(llm, asked, use_cache=False)
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(scores(one), scores(other), atol=1e-4)


def test_a_second_turn_pays_neither_the_tower_nor_the_first_turn(llm):
    messages = [shown("Look at", some_picture(12), "well: what is it?")]
    begun = llm.eyes.num_encoded
    first = answer(llm, messages)
    assert llm.eyes.num_encoded == begun + 1
    longer = [*messages, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Why?"}]
    second = answer(llm, longer)
    assert llm.eyes.num_encoded == begun + 1
    assert second.timings.cached_tokens >= first.prompt_tokens - 1
    assert second.encode_s == 0 and second.image_tokens == N
    answer(llm, messages, use_cache=False)  # the prompt again, not the tower
    assert llm.eyes.num_encoded == begun + 1


def test_the_same_words_about_another_picture_are_not_taken_from_the_cache(llm):
    """Both prompts have the same ids; only the pictures tell them apart."""
    one, other = ([shown("Look at", some_picture(seed), "again")] for seed in (13, 14))
    assert llm.prepare(one).request.prompt == llm.prepare(other).request.prompt
    cached, fresh = (answer(llm, one), answer(llm, other))[1], answer(llm, other, use_cache=False)
    np.testing.assert_allclose(scores(cached), scores(fresh), atol=0.02)


def test_freed_eyes_load_again_and_see_the_same(llm, folder):
    first = answer(llm, [shown(some_picture(15), "What?")])
    assert llm.eyes.is_loaded
    llm.free_vision()
    assert not llm.eyes.is_loaded
    again = answer(llm, [shown(some_picture(15), "What?")])
    assert again.token_ids == first.token_ids and not llm.eyes.is_loaded, "kept embeddings need no tower"
    request = llm.prepare([shown(some_picture(15), "What?")]).request
    before = load_vision(folder)(jnp.asarray(tower_input(prepare_picture(some_picture(15), tile_size=56).tiles)[0]))
    np.testing.assert_array_equal(request.spans[0].embed(), np.asarray(before))
    assert llm.eyes.is_loaded


def test_a_model_that_is_quantized_on_the_way_in_sees_the_same(llm, folder):
    quantized = LLM(folder, quant="int4-b32", context=64, max_sequences=1)
    spans = [one.prepare([shown(some_picture(4), "?")]).request.spans for one in (llm, quantized)]
    np.testing.assert_array_equal(spans[0][0].embed(), spans[1][0].embed())


def test_raw_prompts_of_texts_and_pictures(llm):
    one, two = some_picture(16), some_picture(17)
    request = llm.prepare([one, " says one, ", {"type": "image", "image": two}, " says"]).request
    assert request.prompt == ids_of(llm, f"<bos>{IMAGE} says one, {IMAGE} says")
    assert [span.key for span in request.spans] == [key_of(one), key_of(two)]
    assert llm.generate(["On it: ", two], temperature=0.0, max_tokens=3).image_tokens == N
    with pytest.raises(RequestError, match="one for each prompt, got 3 for 2"):
        llm.generate([["On it: ", one], ["On it: ", two]], max_tokens=[1, 2, 3])


def test_a_video_is_its_frames_with_their_times(llm, monkeypatch):
    frames = [some_picture(18), some_picture(19)]
    asked = []

    def read_frames(source, **told):
        asked.append((source, told))
        return [SimpleNamespace(seconds=s, image=image) for s, image in zip((0.0, 2.54), frames, strict=True)]

    monkeypatch.setattr(media, "read_frames", read_frames)
    part = {"type": "video", "video": "clip.mp4", "max_frames": 2, "sampling": "scenes"}
    request = llm.prepare([{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}]).request
    assert request.prompt == ids_of(
        llm,
        f"<bos><start_of_turn>user\nFrame at 0.0 s:{IMAGE}Frame at 2.5 s:{IMAGE}What happens?<end_of_turn>\n"
        "<start_of_turn>model\n",
    )
    assert [span.key for span in request.spans] == [key_of(frame) for frame in frames]
    assert asked == [("clip.mp4", {"name": None, "max_frames": 2, "sampling": "scenes"})]


PICTURE = some_picture(20)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([shown("?", Path("nowhere.png"))], "nowhere.png: an image must be a file that exists"),
        ([shown(b"")], "messages[0].content[0]: an image must have content, got 0 bytes"),
        ([shown("a", PICTURE, 3)], "messages[0].content[2]: an image must be a path, bytes, a data URL"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages[0].content[0]: an image part must have one of"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "x"}]}], "messages[0].content[0]: a part must be"),
        (
            [{"role": "system", "content": [{"type": "image", "image": PICTURE}]}, shown("?")],
            "messages[0].content[0]: a system message must be text, got a part of type 'image'",
        ),
        ([shown(PICTURE), shown(PICTURE)], "messages[1]: roles must alternate user and assistant"),
        ([shown(*[PICTURE] * 40)], "256"),  # forty pictures are longer than the context
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(llm, messages, says):
    with pytest.raises(RequestError) as error:
        llm.chat(messages)
    assert says in str(error.value) and len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize("kind", ["image_url", "path"])
def test_nothing_is_fetched(llm, kind):
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    part = part if kind == "image_url" else {"type": "image", "path": "http://example.org/a.png"}
    with pytest.raises(RequestError, match=r"an image must be given itself, got an address\.\nNothing is fetched"):
        llm.chat([{"role": "user", "content": [part]}])


def test_pan_and_scan_must_be_one(llm):
    with pytest.raises(RequestError, match="pan_and_scan must be True, False or a PanAndScan, got 'yes'"):
        llm.chat([shown(PICTURE)], pan_and_scan="yes")


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.chat([shown("?", PICTURE)]),
        lambda llm: llm.chat([[shown("?")], [shown("?", PICTURE)]]),
        lambda llm: llm.generate(["On it: ", PICTURE]),
        lambda llm: llm.stream([shown("?", PICTURE)]),
        lambda llm: llm.chat([{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}]),
    ],
)
def test_a_text_model_names_itself(blind, ask):
    with pytest.raises(
        RequestError, match=r"(?s)\]: \S*text reads text only, got .*gemma3:4b, gemma3:12b and gemma3:27b"
    ):
        ask(blind)
    assert blind.eyes is None
    blind.free_vision()


def test_a_model_without_chat_says_so_before_it_looks(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "pt")
    for file in copy.glob("tokenizer_config.json"):
        file.unlink()
    (copy / "generation_config.json").write_text('{"eos_token_id": 1}')
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("[1, 106]", "1"))
    llm = LLM(copy, context=64, max_sequences=1)
    if not llm.is_chat:
        with pytest.raises(RequestError, match="pre-trained model without a chat form"):
            llm.chat([shown(PICTURE)])
    assert llm.prepare(["On it: ", PICTURE]).request.spans


def test_a_vision_half_of_another_kind_matters_only_to_pictures(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "odd")
    file = copy / "config.json"
    file.write_text(file.read_text().replace("siglip_vision_model", "another_tower"))
    llm = LLM(copy, context=64, max_sequences=1)
    assert llm.prepare("text alone").request.spans == ()
    with pytest.raises(CheckpointError, match=r"vision_config.model_type  is 'another_tower'"):
        llm.chat([shown(PICTURE)])
