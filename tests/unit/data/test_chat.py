"""Conversations: what is refused is named by file and line, nothing is lost, rendered ids are serving's own."""

import gzip
import json
import lzma
import random

import numpy as np
import pytest

from gemworks.cli.main import run_command
from gemworks.data.chat import BadLines, conversation_files, is_held_out, read_chats
from gemworks.data.chat_rendering import render
from gemworks.data.chat_rows import ChatSource, PairSource, fitted, joined
from gemworks.errors import ConfigError
from gemworks.llm.prompts import Prompter
from gemworks.tokenizer import Tokenizer
from gemworks.train.tune_data import read_split

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def user(text="Hi"):
    return {"role": "user", "content": text}


def model(text="Hello.", **more):
    return {"role": "assistant", "content": text, **more}


def tool(call_id="c1", text="21"):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return Tokenizer.load(tokenizer_dir)


@pytest.fixture
def prompter(tokenizer):
    return Prompter(tokenizer, "test", lambda: None, opening=[])


BAD = {
    "roles out of order": [
        ([user(), user()], 'messages[1]: the role must be "assistant" here, got "user"'),
        ([model()], 'messages[0]: the role must be "user" here'),
        ([user(), model(), model()], 'messages[2]: the role must be "user" here'),
        ([user(), {"role": "system", "content": "x"}, model()], "messages[1]: a system message must come first"),
        ([user(), {"role": "robot", "content": "x"}], "the role must be one of system, user, assistant, tool"),
        ([user(), model(None, tool_calls=[CALL]), user()], "the result of call 'c1' must come before user"),
    ],
    "empty turn": [
        ([user(), model(" \n")], "messages[1]: the assistant's message says nothing"),
        ([user(""), model()], "messages[0]: the user's message says nothing"),
        ([user(), model(None)], "messages[1]: the assistant's message says nothing"),
        ([{"role": "system", "content": []}, user(), model()], "messages[0]: the system's message says nothing"),
    ],
    "tool result without a call": [
        ([user(), tool(), model()], "messages[1]: the call 'c1' was made by nobody"),
        (
            [user(), model(None, tool_calls=[CALL]), tool("c2"), model()],
            "messages[2]: the call 'c2' was made by nobody",
        ),
        (
            [user(), model(None, tool_calls=[CALL]), tool(), tool(), model()],
            "messages[3]: the call 'c1' was answered already",
        ),
    ],
    "picture": [
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, model()],
            "messages[0].content[0]: tuning learns from text, got a part of type 'image_url'",
        ),
    ],
    "nothing to learn": [
        ([user()], "at least one assistant message must be there"),
        ([user(), model(weight=0)], "at least one assistant message must be there"),
    ],
    "not a conversation": [
        ([], "messages must be a list of messages, got []"),
        ("Hi", "messages must be a list of messages, got 'Hi'"),
        ([user(), {"content": "x"}], 'messages[1]: a message must have a "role"'),
        ([user(7), model()], "messages[0]: content must be a text or a list of parts, got 7"),
        ([user(), model(None, tool_calls=[{"id": "c1"}])], 'messages[1].tool_calls[0] must have "function"'),
    ],
}


@pytest.mark.parametrize(("kind", "messages", "why"), [(kind, *case) for kind, cases in BAD.items() for case in cases])
def test_bad_conversation_is_named_with_file_line_and_message(write, kind, messages, why):
    path = write("chats.jsonl", [{"messages": [user(), model()]}, {"messages": messages}])
    bad = BadLines()
    assert [chat.line for chat in read_chats([path], bad)] == [1]
    [line] = bad.lines
    assert (line.kind, line.file, line.line) == (kind, str(path), 2)
    assert why in line.why


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "a JSON object is needed, got []"),
        (b'{"messages": "\xff"}', "is not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        (b'{"conversations": []}', "the field \"messages\" is missing, got ['conversations'], the form of ShareGPT"),
    ],
)
def test_line_that_is_no_conversation(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    bad = BadLines()
    assert list(read_chats([path], bad)) == []
    assert [(one.kind, one.line) for one in bad.lines] == [("not a conversation", 2)]
    assert why in bad.lines[0].why


def test_compressed_files_are_read_and_others_refused(tmp_path):
    text = (json.dumps({"messages": [user(), model()]}) + "\n").encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(text))
    chats = list(read_chats(conversation_files([tmp_path]), BadLines()))
    assert [chat.file[-4:] for chat in chats] == ["l.gz", "l.xz"]
    assert chats[0].digest == chats[1].digest
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"c\.txt: conversations must be JSONL"):
        conversation_files([tmp_path])


def conversation(rng):
    said = [{"role": ("user", "assistant")[i % 2], "content": rng.choice(SAID)} for i in range(2 * rng.randint(1, 4))]
    return [{"role": "system", "content": rng.choice(SAID)}, *said] if rng.random() < 0.4 else said


SAID = [
    "Hi",
    "  two words ",
    "a\n\nb\n",
    "\n\nc",
    "<end_of_turn>\n",
    "<start_of_turn>model\nno",
    "\u00e4\u4f60",
    "x" * 40,
]


def test_ids_are_servings_for_every_prefix_and_learned_is_what_it_would_say(tokenizer, prompter):
    """A prompt that is served ends where learning begins, and what is learned ends with <end_of_turn>."""
    rng = random.Random(1)
    _, end = tokenizer.chat_ids
    for _ in range(200):
        messages = conversation(rng)
        made = render(tokenizer, messages)
        ids, mask = made.ids.tolist(), made.learned.tolist()
        answers = 0
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = prompter.render(messages[:k]).ids
            assert ids[: len(prompt)] == prompt
            stop = ids.index(end, len(prompt)) + 1
            assert not mask[len(prompt) - 1] and all(mask[len(prompt) : stop]) and not mask[stop]
            assert tokenizer.decode(ids[len(prompt) : stop - 1]) == message["content"].strip()
            answers += stop - len(prompt)
        assert sum(mask) == answers


def test_calls_are_learned_and_results_are_not(tokenizer):
    """That the ids are those of LLM.prepare is in tests/system/cli/test_tune.py."""
    messages = [
        user("In Paris?"),
        model(None, tool_calls=[CALL]),
        tool(),
        model("It is 21."),
        user("Thanks"),
        model("!"),
    ]
    made = render(tokenizer, messages, TOOLS)
    said = [tokenizer.decode(made.ids[made.learned].tolist())]
    assert said == ['[weather(city="Paris")]It is 21.!']
    text = tokenizer.decode(made.ids.tolist())
    assert "tool_output\n21" in text and '"name": "weather"' in text


def test_message_of_weight_0_is_read_and_not_learned(tokenizer):
    messages = [user(), model("first", weight=0), user(), model("second")]
    made = render(tokenizer, messages)
    assert tokenizer.decode(made.ids[made.learned].tolist()) == "second"


def texts_of(tokenizer, *conversations):
    rendered = [(render(tokenizer, one), ("a.jsonl", i)) for i, one in enumerate(conversations, 1)]
    return joined(rendered)


def source_of(texts, tokenizer, kind=ChatSource, **more):
    return kind(
        texts, **{"length": 64, "batch_rows": 2, "seed": 3, "vocab_size": tokenizer.size, "tokenizer": "t"} | more
    )


def test_rows_hold_every_conversation_once_an_epoch_and_no_other_sees_it(tokenizer):
    conversations = [[user("u" * (i % 7 + 1)), model("m" * (i % 11 + 1))] for i in range(30)]
    texts = texts_of(tokenizer, *conversations)
    source = source_of(texts, tokenizer)
    seen, learned = [], 0
    for step in range(source.num_rows):
        batch = source.rows([step])
        for index in range(1, batch.segment_BT.max() + 1):
            here = batch.segment_BT[0] == index
            assert batch.position_BT[0, here].tolist() == list(range(here.sum()))
            ids, targets = batch.ids_BT[0, here], batch.targets_BT[0, here]
            assert ids[1:].tolist() == targets[:-1].tolist()
            seen.append(tuple([*ids.tolist(), int(targets[-1])]))
            said = tokenizer.decode(targets[batch.loss_mask_BT[0, here]].tolist())
            assert set(said) == {"m"}
        learned += batch.num_targets
    assert sorted(seen) == sorted(tuple(render(tokenizer, one).ids.tolist()) for one in conversations)
    assert learned == texts.num_learned


def test_batches_are_a_function_of_step_and_seed(tokenizer):
    texts = texts_of(tokenizer, *[[user(str(i)), model("m" * i)] for i in range(1, 20)])
    source = source_of(texts, tokenizer)
    for step in (0, 5, 40):
        again = source_of(texts, tokenizer).batch(step)
        assert np.array_equal(source.batch(step).ids_BT, again.ids_BT)
        assert np.array_equal(source.batch(step, slice(1, 2)).ids_BT, again.ids_BT[1:])
        assert [row["stored_row"] for row in source.describe(step)] == source.numbers(step)
    per_epoch = sorted(n for step in range(source.num_rows // 2) for n in source.numbers(step))
    assert per_epoch == list(range(source.num_rows // 2 * 2)) or len(set(per_epoch)) == len(per_epoch)
    assert source.digest != source_of(texts, tokenizer, seed=4).digest


@pytest.mark.parametrize("policy", ["truncate", "skip", "stop"])
def test_too_long_is_counted_and_named(tokenizer, policy):
    short, long = [user(), model("m")], [user(), model("n" * 100)]
    hopeless = [user("u" * 100), model("o")]
    texts = texts_of(tokenizer, short, long, hopeless)
    skipped, cut = BadLines(), BadLines()
    if policy == "stop":
        with pytest.raises(
            ConfigError, match=r"(?s)2 lines .*a\.jsonl, line 2: .* longer than the 40 of a row.*--length"
        ):
            fitted(texts, 40, policy, skipped, cut)
        return
    left = fitted(texts, 40, policy, skipped, cut)
    assert [line.line for line in skipped.lines] == ([3] if policy == "truncate" else [2, 3])
    assert [line.line for line in cut.lines] == ([2] if policy == "truncate" else [])
    assert [line for _, line in left.origins] == ([1, 2] if policy == "truncate" else [1])
    assert left.sizes.max() <= 41
    assert np.array_equal(left.ids_N[: left.starts[1]], texts.ids_N[: texts.starts[1]])
    if policy == "truncate":
        assert np.array_equal(left.ids_N[left.starts[1] :], texts.ids_N[texts.starts[1] : texts.starts[1] + 41])
        assert left.learned_N[left.starts[1] :].sum() > 0


def test_pairs_lie_together_better_first(tokenizer):
    pairs = [([user(str(i)), model("b" * (i + 1))], [user(str(i)), model("w")]) for i in range(9)]
    texts = texts_of(tokenizer, *[one for pair in pairs for one in pair])
    reference = np.arange(18, dtype=np.float32).reshape(9, 2)
    source = source_of(texts, tokenizer, PairSource, reference=reference, length=128)
    seen = []
    for row in range(source.num_rows):
        rows = source.rows([row])
        for p in range(rows.pairs_B[0]):
            better, worse = (
                tokenizer.decode(rows.targets_BT[0, (rows.segment_BT[0] == s) & (rows.loss_mask_BT[0] > 0)].tolist())
                for s in (2 * p + 1, 2 * p + 2)
            )
            assert set(better) == {"b"} and worse == "w"
            number = len(better) - 1
            assert rows.reference_BQ[0, 2 * p : 2 * p + 2].tolist() == reference[number].tolist()
            seen.append(number)
        assert not rows.reference_BQ[0, 2 * rows.pairs_B[0] :].any()
    assert sorted(seen) == list(range(9))


def test_lines_read_are_lines_used_held_out_and_skipped(write, tokenizer):
    good = [{"messages": [user(f"question {i}"), model("m" * (i % 50 + 1))]} for i in range(100)]
    broken = [{"messages": messages} for cases in BAD.values() for messages, _ in cases]
    records = good + broken
    random.Random(2).shuffle(records)
    path = write("mixed.jsonl", records)
    options = {"is_pairs": False, "validation": 0.2}
    split, report = read_split([path], tokenizer, bad="skip", **options)
    split = split.fitted(60, "truncate", report)
    assert report.read == len(records)
    assert report.used + report.held_out + report.skipped.total == report.read
    assert report.used == len(split.learn) and 5 <= report.held_out <= 40
    assert {line.line for line in report.skipped.lines} >= {i for i, one in enumerate(records, 1) if one in broken}
    with pytest.raises(
        ConfigError, match=rf"(?s){len(broken)} lines cannot be learned from \(.*roles out of order.*\):\n.*"
    ):
        read_split([path], tokenizer, bad="stop", **options)


def test_held_out_by_what_is_said_not_by_where_it_stands(write, tokenizer):
    records = [{"messages": [user(f"question {i}"), model()]} for i in range(60)]
    sets = []
    for order in (records, records[::-1]):
        split, _ = read_split([write("o.jsonl", order)], tokenizer, is_pairs=False, validation=0.3, bad="stop")
        texts = split.held
        sets.append({tuple(texts.ids_N[a:b]) for a, b in zip(texts.starts, texts.starts[1:], strict=False)})
    assert sets[0] == sets[1] and sets[0]
    assert not is_held_out("f" * 16, 0.99) and is_held_out("0" * 16, 0.01) and is_held_out("f" * 16, 1.0)


def test_preferences_that_are_none_are_named(write, tokenizer):
    good = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}
    records = [
        good,
        {"prompt": [user()], "chosen": [model("a")], "rejected": [model("b")]},
        {"prompt": "Hi", "chosen": "Hello."},
        good | {"rejected": "Hello."},
        good | {"chosen": [user()]},
        good | {"rejected": ""},
    ]
    split, report = read_split([write("p.jsonl", records)], tokenizer, is_pairs=True, validation=0.0, bad="skip")
    assert len(split.learn) == 4
    found = [(line.line, line.kind) for line in report.skipped.lines]
    assert found == [
        (3, "not a conversation"),
        (4, "nothing to learn"),
        (5, "roles out of order"),
        (6, "empty turn"),
    ]
    learned = tokenizer.decode(split.learn.ids_N[split.learn.learned_N].tolist())
    assert learned == "Hello.Go away.ab"


def test_inspect_marks_what_is_learned(write, tokenizer_dir, capsys):
    path = write("c.jsonl", [{"messages": [user("Hi"), model("Hello.")]}, {"messages": [user()]}])
    assert run_command(["data", "inspect", str(path), "--tokenizer", str(tokenizer_dir)]) == 0
    out, err = capsys.readouterr()
    assert "c.jsonl:1" in out
    assert "<start_of_turn>model\n[[Hello.<end_of_turn>]]" in out
    assert "line 2" in err and "1 nothing to learn" in err
    assert run_command(["data", "inspect", str(path), "--tokenizer", str(tokenizer_dir), "--json"]) == 0
    [one] = json.loads(capsys.readouterr().out)["conversations"]
    assert sum(one["learned"]) == len("Hello.") + 1
