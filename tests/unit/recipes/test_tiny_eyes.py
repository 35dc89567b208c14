"""Scenes and questions that the eyes of `tiny` learn from: repeatable, drawn as they say, apart from what is asked."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from gemworks.media import tower_input
from gemworks.tokenizer.images import render_chat_images
from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_eyes import questions, talk
from recipes.tiny_eyes.album import Album, facts_of, make_album, picture_of
from recipes.tiny_eyes.evaluation import asked, held_questions, wilson
from recipes.tiny_eyes.rows import packed, picture_rows, picture_sample
from recipes.tiny_eyes.scenes import COLOURS, SHAPES, ZONES, arrangement, draw, is_held, random_scene
from recipes.tiny_standin.corpus import tokenizer_texts
from recipes.tiny_standin.vocabulary import train_tokenizer

TOKENS = 16


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(0)
    return [random_scene(rng) for _ in range(1500)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_texts(0))


@pytest.fixture(scope="module")
def album() -> Album:
    return make_album("test", 60, 32, lambda done: None)


def test_a_seed_gives_one_album(album):
    again = make_album("test", 60, 32, lambda done: None)
    assert again.scenes == album.scenes
    np.testing.assert_array_equal(again.tiles, album.tiles)
    assert make_album("other", 5, 32, lambda done: None).scenes != album.scenes[:5]


def test_training_never_sees_a_held_arrangement(scenes):
    """By checksum, and by comparing what is in the scenes of both sides."""
    rng = random.Random(1)
    held = [random_scene(rng, held=True) for _ in range(500)]
    assert not any(is_held(scene.things) for scene in scenes)
    assert all(is_held(scene.things) for scene in held)
    assert not {arrangement(scene.things) for scene in scenes} & {arrangement(scene.things) for scene in held}
    evaluated = [scene for kind in questions.KINDS for scene, _ in held_questions(0, kind, 20, new_words=False)]
    assert all(is_held(scene.things) for scene in evaluated)


def test_held_wordings_are_in_no_training_question(scenes):
    rng = random.Random(2)
    trained = {plain(questions.ask(rng, scene).user) for scene in scenes for _ in range(4)}
    for kind in questions.KINDS:
        held = {plain(exchange.user) for _, exchange in held_questions(0, kind, 60, new_words=True)}
        assert held and not held & trained, kind


def plain(text: str) -> str:
    return re.sub(r"[.?!]", "", text.lower())


def test_every_number_of_shapes_is_as_frequent(scenes):
    number = Counter(len(scene.things) for scene in scenes)
    assert set(number) == {1, 2, 3, 4, 5}
    assert min(number.values()) > 240


def test_a_picture_shows_what_its_scene_says(scenes):
    """The colour at a shape's centre is its own, which is near the colour of its name; the zone is where it is."""
    for scene in scenes[:200]:
        image = draw(scene)
        assert image.size == (scene.width, scene.height)
        for one in scene.things:
            assert image.getpixel((int(one.x * scene.width), int(one.y * scene.height))) == one.rgb
            assert max(abs(a - b) for a, b in zip(one.rgb, COLOURS[one.colour], strict=True)) <= 15
            column, row = int(one.x * 3), int(one.y * 3)
            assert ZONES[row * 3 + column] == ZONES[one.zone]
            radius = one.radius * min(scene.width, scene.height)
            assert radius <= one.x * scene.width <= scene.width - radius
        assert len({one.zone for one in scene.things}) == len(scene.things)


def test_shapes_are_of_one_colour_and_differ_in_area(scenes):
    """By the pixels of each colour: nothing but ground and shapes, and a circle covers more than a star as wide."""
    areas: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for scene in scenes[:400]:
        pixels = {rgb: number for number, rgb in draw(scene).getcolors()}
        assert set(pixels) == {scene.ground, *(one.rgb for one in scene.things)}
        for one in scene.things:
            if sum(other.rgb == one.rgb for other in scene.things) == 1:
                areas[one.shape].append(pixels[one.rgb] / (one.radius * min(scene.width, scene.height)) ** 2)
    mean = {shape: float(np.mean(found)) for shape, found in areas.items()}
    assert mean["circle"] == pytest.approx(np.pi, rel=0.1)
    assert mean["circle"] > mean["square"] > mean["cross"] > mean["triangle"] > mean["star"]


def test_answers_are_right(scenes):
    """Read back from the words by rules of their own, for every kind of question."""
    rng = random.Random(3)
    seen = Counter()
    for scene in scenes:
        for kind, (maker, _) in questions.KINDS.items():
            found = maker(rng, scene, held=rng.random() < 0.5)
            if found is None:
                continue
            seen[kind] += 1
            assert found.task == kind
            assert is_right(scene, found.user.lower(), found.answer), (arrangement(scene.things), found)
    assert all(seen[kind] > 1000 for kind in questions.KINDS)


def is_right(scene, user: str, answer: str) -> bool:
    """By elimination: the things that fit the question's words, and what they all have that the answer says."""
    if listed := re.findall(r"[Aa]n? (\w+) (\w+) at the ([\w ]+)", answer):
        zones = [ZONES.index(zone) for _, _, zone in listed]
        assert len(answer.split(", ")) == len(listed) == len(scene.things)
        return zones == sorted(zones) and set(listed) == {(t.colour, t.shape, ZONES[t.zone]) for t in scene.things}
    words = set(re.findall(r"[a-z]+", user))
    fitting = [
        one
        for one in scene.things
        if (one.shape in words or not words & set(SHAPES)) and (one.colour in words or not words & set(COLOURS))
    ]
    if match := re.fullmatch(r"There (?:is|are) (\d) shapes?\.", answer):
        return int(match[1]) == len(scene.things) and ("is" in answer.split()) == (len(scene.things) == 1)
    if len(fitting) != 1:
        return False
    one = fitting[0]
    names = {one.shape, one.colour, "shape", "thing", "It", "The", "is", "a", "an"}
    if match := re.fullmatch(r"(.+) is at the (.+)\.", answer):
        return match[2] == ZONES[one.zone] and set(match[1].split()) <= names
    said = set(answer.rstrip(".").split())
    return said <= names and bool(said & {one.shape, one.colour})


def test_facts_are_of_the_soft_token_that_shows_the_shape(scenes):
    facts = facts_of(scenes[:100])
    for n, scene in enumerate(scenes[:100]):
        assert facts.count_N[n] == len(scene.things) - 1
        assert (facts.shape_NC[n] < len(SHAPES)).sum() == len(scene.things)
        for one in scene.things:
            at = int(one.y * 4) * 4 + int(one.x * 4)
            assert SHAPES[facts.shape_NC[n, at]] == one.shape
            assert list(COLOURS)[facts.colour_NC[n, at]] == one.colour


def test_wide_scenes_are_cropped_and_worded_as_in_serving(tokenizer, album):
    """Pan & Scan counted right: the whole and every crop have their soft tokens, after the words of spec 12.3."""
    cropped = [i for i in range(60) if album.num_crops(i)]
    assert len(cropped) >= 2
    for i in cropped:
        picture = picture_of(album.scenes[i], 32)
        assert picture.num_crops == album.num_crops(i) >= 2
        np.testing.assert_array_equal(album.tiles[album.tiles_of[i] : album.tiles_of[i + 1]], picture.tiles)
        exchange = questions.ask(random.Random(i), album.scenes[i])
        messages = asked(album.scenes[i], exchange.user)
        served = render_chat_images(tokenizer, messages, [picture.num_crops], tokens_per_image=TOKENS)
        shown = talk.Shown([*messages, {"role": "assistant", "content": exchange.answer}], [i])
        trained = picture_sample(tokenizer, shown, album, TOKENS)
        assert trained.sample.ids[: len(served.ids)] == served.ids
        assert [start for start, _ in trained.spans] == [span.start for span in served.spans]
        assert [tile for _, tile in trained.spans] == list(range(album.tiles_of[i], album.tiles_of[i + 1]))
        assert "here are some crops" in tokenizer.decode(trained.sample.ids)
        answer = [id_ for id_, is_target in zip(*trained.sample, strict=True) if is_target]
        assert tokenizer.decode(answer).strip() == exchange.answer


def test_rows_place_every_soft_token(tokenizer, album):
    """Soft tokens stand where the placeholder ids do, in the order of the tile; none elsewhere."""
    rows = picture_rows(tokenizer, album, seed="t", number=6, length=224, tokens_per_image=TOKENS)
    placeholder = tokenizer.id_of("<image_soft_token>")
    assert ((rows.rows.ids_BL == placeholder) == (rows.soft_BL >= 0)).all()
    assert (rows.soft_BL >= 0).sum() > 6 * TOKENS
    for row in range(6):
        spans = rows.soft_BL[row][rows.soft_BL[row] >= 0].reshape(-1, TOKENS)
        np.testing.assert_array_equal(spans - spans[:, :1], np.tile(np.arange(TOKENS), (len(spans), 1)))
        assert (spans[:, 0] % TOKENS == 0).all()
        assert not rows.rows.weight_BL[row][rows.soft_BL[row] >= 0].any()


def test_a_soft_token_sees_to_the_end_of_its_image_and_no_further(tokenizer, album):
    shown = [talk.conversation_about(random.Random(seed), album.scenes) for seed in range(3)]
    samples = [picture_sample(tokenizer, one, album, TOKENS) for one in shown]
    rows = packed(samples, 1024, TOKENS)
    begin = 0
    for one in samples:
        for start, _ in one.spans:
            see = rows.see_BL[0, begin + start : begin + start + TOKENS]
            assert (see == start + TOKENS - 1).all()
            assert rows.see_BL[0, begin + start - 1] == rows.see_BL[0, begin + start + TOKENS] == 0
        begin += len(one.sample.ids)


def test_tiles_are_what_serving_makes(scenes):
    """A PNG file through the path of `gemworks run --image`, to the last bit."""
    from gemworks.media import image_request, prepare_picture

    for scene in scenes[:10]:
        part = asked(scene, "What is this?")[0]["content"][0]
        request = image_request(part, "a part")
        assert request.wants_crops == scene.is_wide
        served = prepare_picture(request.source, tile_size=64, name="a part")
        np.testing.assert_array_equal(tower_input(served.tiles[:1]), tower_input(picture_of(scene, 64).tiles[:1]))


def test_wilson_is_the_textbook_interval():
    """Wilson 1927 as Newcombe 1998 tabulates it: 81 of 263, 15 of 148, 0 of 20."""
    for right, number, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right, number) == pytest.approx((low, high), abs=1e-4)
