"""The texts that `tiny` is trained on: repeatable, apart from what it is asked later, and masked to its answers."""

import itertools
import random
import re

import numpy as np
import pytest

from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.tokenizer.vocabulary import byte_piece
from recipes.tiny_standin import facts, stories, tasks, vocabulary
from recipes.tiny_standin.corpus import tokenizer_texts, training_rows
from recipes.tiny_standin.packing import Sample, chat_sample, pack, text_sample
from recipes.tiny_standin.phrasing import is_held_pair, is_held_range, is_held_word
from recipes.tiny_standin.recipe import Recipe
from recipes.tiny_standin.talk import TASKS, conversation, held_out, num_turns


def conversations(seed: int, number: int):
    rng = random.Random(seed)
    return [conversation(rng, num_turns(rng)) for _ in range(number)]


def bare(text: str) -> str:
    """A question without what `Phrasing.ask` may change."""
    return text.lower().rstrip(".?!")


@pytest.fixture(scope="module")
def trained_on():
    return conversations(0, 4000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.train_tokenizer(tokenizer_texts(0))


def test_a_seed_gives_one_corpus():
    assert conversations(3, 50) == conversations(3, 50) != conversations(4, 50)
    assert held_out(3, 5) == held_out(3, 5) != held_out(4, 5)


def test_every_task_is_trained_and_asked(trained_on):
    asked = held_out(0, 3)
    assert set(asked) == set(TASKS) - {"story"} | {"recall", "follow-up"}
    assert all(len(found) == 3 for found in asked.values())
    rng = random.Random(0)
    assert {maker(rng).task for maker, _ in TASKS.values()} == set(TASKS)


def test_held_out_questions_are_never_trained_on(trained_on):
    """Every single-turn question of the evaluation, whatever its case and last mark."""
    seen = {bare(m["content"]) for talk in trained_on for m in talk if m["role"] == "user"}
    for task, asked in held_out(0, 100).items():
        if task not in ("follow-up", "recall", "greeting"):
            repeated = {bare(talk[-2]["content"]) for talk in asked} & seen
            assert not repeated, (task, repeated)


def test_held_out_greetings_differ_by_more_than_nothing(trained_on):
    """`Good morning.` with a full stop is new, though not once marks are dropped: greetings are compared as typed."""
    seen = {m["content"] for talk in trained_on for m in talk if m["role"] == "user"}
    assert not {talk[-2]["content"] for talk in held_out(0, 50)["greeting"]} & seen


def test_held_number_pairs_are_in_no_text(trained_on):
    rng = random.Random(8)
    texts = [stories.plain_text(rng) for _ in range(1000)]
    answers = [m["content"] for talk in trained_on for m in talk if m["role"] == "assistant"]
    pairs = [tuple(map(int, found)) for text in texts + answers for found in re.findall(r"(\d+) [+-] (\d+) =", text)]
    assert len(pairs) > 4000
    assert not [pair for pair in pairs if is_held_pair(*pair)]
    held = [pair for pair in itertools.combinations_with_replacement(range(100), 2) if is_held_pair(*pair)]
    assert 0.08 < len(held) / 5050 < 0.12
    assert min(max(pair) for pair in held) >= 10, "one-digit sums are all trained on"


def test_held_words_are_never_spelled_repeated_or_greeted(trained_on):
    """They may occur inside other questions, which is where their pieces are learned."""
    answers = [m["content"] for talk in trained_on for m in talk if m["role"] == "assistant"]
    spelled = {answer.replace("-", "") for answer in answers if re.fullmatch(r"[a-z](-[a-z])+", answer)}
    greeted = {found[1] for answer in answers if (found := re.match(r"Hello (\w+)!", answer))}
    assert len(spelled) > 100
    assert len(greeted) > 40
    assert not [word for word in spelled | greeted if is_held_word(word)]
    assert any(is_held_word(word) for word in facts.WORDS)
    assert any(is_held_word(name) for name in facts.NAMES)


def test_held_ranges_are_never_counted(trained_on):
    answers = [m["content"] for talk in trained_on for m in talk if m["role"] == "assistant"]
    counted = [answer[:-1].split(", ") for answer in answers if re.fullmatch(r"\d+(, \d+)+\.", answer)]
    assert len(counted) > 100
    assert not [numbers for numbers in counted if is_held_range(int(numbers[0]), int(numbers[-1]))]


def test_answers_are_true(trained_on):
    """Sums are right, capitals and opposites are those of the tables, letters are those of the word asked for."""
    checked = 0
    for question, answer in itertools.pairwise(m["content"] for talk in trained_on for m in talk):
        if found := re.fullmatch(r"(\d+) ([+-]) (\d+) = (-?\d+)\.", answer):
            a, b = int(found[1]), int(found[3])
            assert int(found[4]) == (a + b if found[2] == "+" else a - b)
        elif found := re.fullmatch(r"The capital of ([\w ]+) is ([\w ]+)\.", answer):
            assert facts.CAPITALS[found[1]] == found[2]
        elif re.fullmatch(r"[a-z](-[a-z])+", answer):
            assert answer.replace("-", "") in re.split(r"\W+", question)
        else:
            continue
        checked += 1
    assert checked > 2000


def test_a_name_is_remembered_to_the_end():
    """The last name given is the one recalled, however much was said since; before any, it says so."""
    recalled = 0
    rng = random.Random(5)
    for _ in range(300):
        name = None
        for message in conversation(rng, 12):
            if found := re.match(r"Hello (\w+)!", message["content"]):
                name = found[1] if message["role"] == "assistant" and "can I help" in message["content"] else name
            if message["content"].startswith("Your name is"):
                assert message["content"] == f"Your name is {name}."
                recalled += 1
            if message["content"] == "You have not told me your name.":
                assert name is None
    assert recalled > 100


def test_stories_keep_their_people():
    text = stories.story(random.Random(1), "owl")
    hero = re.search(r"owl called (\w+)\.", text)
    assert hero is not None
    assert text.count(hero[1]) >= 3
    assert text.endswith("The end.")


def test_targets_are_the_answers_and_nothing_else(tokenizer):
    """Every model turn with its <end_of_turn>, in order; not the header, not the newline after it."""
    for messages in conversations(1, 200):
        sample = chat_sample(tokenizer, messages)
        runs = [
            [i for i, _ in group]
            for is_target, group in itertools.groupby(
                zip(sample.ids, sample.is_target, strict=True), key=lambda pair: pair[1]
            )
            if is_target
        ]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert [tokenizer.decode(run, skip_control=False) for run in runs] == [f"{a}<end_of_turn>" for a in answers]


def test_only_the_last_answer_is_a_target_of_a_question(tokenizer):
    messages = conversation(random.Random(2), 3)
    sample = chat_sample(tokenizer, messages, last_only=True)
    target = [i for i, is_target in zip(sample.ids, sample.is_target, strict=True) if is_target]
    assert tokenizer.decode(target) == messages[-1]["content"]


def test_a_plain_text_is_a_target_with_its_end(tokenizer):
    sample = text_sample(tokenizer, "A b.")
    assert sample.ids[0] == tokenizer.bos_id
    assert sample.ids[-1] == tokenizer.eos_id
    assert sample.is_target == [False] + [True] * (len(sample.ids) - 1)


def test_rows_hold_whole_texts_apart():
    """Every text is in one row, under one segment, and its last token predicts nothing."""
    rng = random.Random(0)
    samples = [
        Sample([rng.randrange(5, 99) for _ in range(n)], [False] + [rng.random() < 0.5 for _ in range(n - 1)])
        for n in (rng.randint(2, 16) for _ in range(60))
    ]
    rows, places = pack(samples, 16)
    for sample, (row, segment) in zip(samples, places, strict=True):
        (at,) = np.nonzero(rows.segment_BL[row] == segment)
        assert (np.diff(at) == 1).all()
        assert rows.ids_BL[row, at].tolist() == sample.ids
        assert rows.next_BL[row, at[:-1]].tolist() == sample.ids[1:]
        assert rows.weight_BL[row, at].tolist() == [*map(float, sample.is_target[1:]), 0.0]
    filled = rows.segment_BL > 0
    assert filled.sum() == sum(len(sample.ids) for sample in samples)
    assert not rows.weight_BL[~filled].any()


def test_a_run_never_sees_a_row_twice(tokenizer):
    recipe = Recipe(steps=6, batch_tokens=512, row=128, long_tokens=512, long_row=256, long_every=3)
    short, long = training_rows(tokenizer, recipe)
    assert short.ids_BL.shape == (4 * 512 // 128, 128)
    assert long.ids_BL.shape == (2 * 512 // 256, 256)
    assert (short.segment_BL > 0).mean() > 0.8
    assert len({row.tobytes() for row in short.ids_BL}) == len(short.ids_BL)


def test_tokenizer_is_laid_out_as_gemmas(tokenizer):
    assert tokenizer.size == vocabulary.SIZE
    named = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "[multimodal]": 5, "<unused98>": 104}
    named |= {"<start_of_turn>": 105, "<end_of_turn>": 106, "\n": 107, "\n" * 31: 137, "\u2581" * 31: 167}
    named |= {byte_piece(0): 168, "<image_soft_token>": vocabulary.SIZE - 1}
    assert {name: tokenizer.id_of(name) for name in named} == named


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12+345", ["1", "2", "+", "3", "4", "5"]),
        (" 7", [" ", "7"]),
        ("\n\n\n  \t", ["\n\n\n", "  ", "\t"]),
        ("\u00e9", ["<0xC3>", "<0xA9>"]),
        ("a-b", ["a", "-", "b"]),
    ],
)
def test_digits_white_space_and_bytes_are_pieces_of_their_own(tokenizer, text, pieces):
    assert [tokenizer.piece(i) for i in tokenizer.encode(text)] == pieces


def test_tokenizer_gives_back_any_text(tokenizer):
    for text in (
        "What is 12 + 34?",
        " two  spaces ",
        "\u00fc\u4e2d\U0001f600\r\n",
        "<bos>",
        "".join(map(chr, range(1, 127))),
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_can_be_written_to_gguf(tokenizer):
    """Its merges follow from scores, so the same ids come out of the vocabulary alone."""
    again = Tokenizer.from_vocabulary(*tokenizer.to_vocabulary())
    for messages in conversations(7, 50):
        for message in messages:
            assert again.encode(message["content"]) == tokenizer.encode(message["content"])


def test_made_up_words_are_not_words():
    rng = random.Random(0)
    made_up = {tasks.made_up_word(rng) for _ in range(500)}
    assert len(made_up) > 300
    assert len(made_up & set(facts.WORDS)) < 5
