"""Ids of the official vocabulary, the same from every source, against Hugging Face's engine on the published file.

The engine is our own too, so what is compared is everything around it: derived merges, added tokens, control
tokens as text. The naive splitter of tests/unit/tokenizer and sentencepiece (tests/oracle) check the rules.
"""

import json
import random

import pytest
import tokenizers

from gemworks.tokenizer import Tokenizer, is_gemma_template, render_chat
from gemworks.tokenizer.table import VocabularyTable
from gemworks.tokenizer.vocabulary import Vocabulary, merges_of
from gemworks.weights import tokenizer_cache

NUM_TEXTS = 20_000
CONTROLS = [
    *("<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused99>", "<unused6241>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
]
NEAR_CONTROLS = ["<start_of_turn", "end_of_turn>", "<unused6242>", "<unused>", "<0x0A>", "<|im_start|>", "<bos>"[:3]]
TAGS = ["<table>", "</footer>", "<h1>", "<b>", "</b>", "<td><tr>", "<br/>"]
SPACES = [" ", "\n", "\t", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\x0b", "\x0c", "\x85", "\ufeff", "\u200b"]
WORDS = [
    *("the", "world", "of", "caf\u00e9", "GPT-4", "isn't", "3.14159", "1_000_000", "2024-05-06", "http://a.b/c?d=e#f"),
    *("def f(x): return x**2", "\u043f\u0440\u0438\u0432\u0435\u0442", "\u0645\u0631\u062d\u0628\u0627"),
    *("\u0926\u093f\u0932\u093e\u0908", "\u09e7\u09e8\u09e9", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"),
    *("\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155\ud558\uc138\uc694"),
    *("\u05e9\u05dc\u05d5\u05dd", "\u03ba\u03cc\u03c3\u03bc\u03b5", "nai\u0308ve", "e\u0301", "a\u030a\u0323"),
    *("\ufb01", "\u2460", "\u00bd", "\uff21\uff22", "\u1100\u1161\u11a8"),
]
EMOJI = [
    *("\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f466", "\U0001f44d\U0001f3fd", "\u2764\ufe0f"),
    *("\U0001f1eb\U0001f1f7", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
]
RARE = [
    "\U00010348",
    "\U000f0000",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "\u0378",
    "\x00",
    "\x01",
    "\x1b",
    "\x7f",
]
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x900, 0xE80), (0x3040, 0x3100), (0x4E00, 0x9FFF)]
SCRIPTS += [(0x1F300, 0x1FAFF), (0x10000, 0x10FFF), (0xAC00, 0xD7A4), (0x2000, 0x2BFF)]


def fuzzed(rng: random.Random) -> str:
    """A text of up to 14 parts of any kind: words, runs of white space up to 80, literals, characters of one script."""

    def part():
        kind = rng.random()
        if kind < 0.3:
            return rng.choice(["", " "]) + rng.choice(WORDS)
        if kind < 0.5:
            return rng.choice(SPACES) * min(80, int(rng.expovariate(0.15)) + 1)
        if kind < 0.6:
            low, high = rng.choice(SCRIPTS)
            return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))
        if kind < 0.75:
            return rng.choice(CONTROLS + NEAR_CONTROLS + TAGS)
        if kind < 0.8:
            return "\u2581" * rng.randint(1, 40)
        return rng.choice(EMOJI + RARE)

    return "".join(part() for _ in range(rng.randint(1, 14)))


@pytest.fixture(scope="session")
def texts():
    rng = random.Random(20251)
    return [fuzzed(rng) for _ in range(NUM_TEXTS)]


@pytest.fixture(scope="session")
def published(official):
    """The published engine, and the one in which every control token is special and special tokens are text."""
    engines = [tokenizers.Tokenizer.from_file(str(official / "tokenizer.json")) for _ in range(2)]
    added = [token.content for token in engines[1].get_added_tokens_decoder().values() if not token.special]
    engines[1].add_special_tokens([name for name in added if "unused" in name or name in CONTROLS])
    engines[1].encode_special_tokens = True
    return engines


@pytest.fixture(scope="session")
def expected(published, texts):
    """(ids with control tokens parsed, ids with control tokens as text) of every text."""
    return [[engine.encode(text, add_special_tokens=False).ids for text in texts] for engine in published]


@pytest.fixture(scope="session")
def gguf_lists(official):
    return Tokenizer.load(official).to_vocabulary()


def ollama_lists(spm_lists):
    pieces, scores, types = spm_lists
    return pieces, scores, [1 if t == 4 else t for t in types]


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model", "GGUF", "GGUF as Ollama writes it"])
def source(request, official, spm_lists, spm_file, gguf_lists):
    """The tokenizer of one source; one at a time, as each holds 0.4 GB."""
    if request.param == "tokenizer.json":
        return Tokenizer.load(official)
    if request.param == "tokenizer.model":
        return Tokenizer.load(spm_file)
    return Tokenizer.from_vocabulary(*(gguf_lists if request.param == "GGUF" else ollama_lists(spm_lists)))


def test_every_source_gives_the_published_ids(source, texts, expected):
    """20,000 fuzzed texts, also those with U+2581, control tokens parsed and as text; and back to the very text."""
    for text, parsed, literal in zip(texts, *expected, strict=True):
        assert source.encode(text, control=True) == parsed, repr(text)
        assert source.encode(text) == literal, repr(text)
        assert source.control_ids.isdisjoint(literal)
        assert source.decode(literal) == source.decode(parsed, skip_control=False) == text.replace("\u2581", " ")


def test_text_without_control_tokens_is_the_same_in_both_modes(texts, expected):
    plain = [i for i, text in enumerate(texts) if not any(name in text for name in CONTROLS)]
    assert len(plain) > NUM_TEXTS // 3
    assert all(expected[0][i] == expected[1][i] for i in plain)


def test_streamed_texts_add_up(source, texts, expected):
    for text, ids in zip(texts[:4000], expected[1], strict=False):
        decoder = source.stream()
        pushed = [decoder.push(i) for i in ids]
        assert not any("\ufffd" in part for part in pushed) or "\ufffd" in text
        assert "".join(pushed) + decoder.finish() == text.replace("\u2581", " ")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9259, 236764, 1902, 236888]),
        ("I'm 25 years old.", [236777, 236789, 236757, 236743, 236778, 236810, 1518, 2255, 236761]),
        ("  lead", [138, 40227]),
        ("A  B   C", [236776, 138, 236799, 139, 236780]),
        ("a\tb", [236746, 255968, 236763]),
        ("x = 1\n    y", [236781, 578, 236743, 236770, 107, 140, 236762]),
        ("a  \n b", [236746, 138, 107, 518]),
        ("na\u00efve caf\u00e9", [1789, 238527, 560, 33443]),
        ("\uc548\ub155\ud558\uc138\uc694", [61659]),
        ("\U00010348", [478, 382, 379, 374]),
        ("\n" * 40, [137, 115]),
        ("\r\n", [238 + 0x0D, 107]),
        ("Here is the original image \n\n", [8291, 563, 506, 3303, 2471, 236743, 108]),
    ],
)
def test_conformance_values(source, text, ids):
    assert source.encode(text) == source.encode(text, control=True) == ids


def test_conformance_value_of_an_image(source):
    image = "\n\n<start_of_image><image_soft_token><end_of_image>\n\n"
    text = f"<bos><start_of_turn>user\n{image}Describe this.<end_of_turn>\n"
    ids = [2, 105, 2364, 109, 255999, 262144, 256000, 108, 82858, 672, 236761, 106, 107]
    assert source.encode(text, control=True) == ids


def test_conformance_value_of_a_chat(source):
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello!"}]
    ids = [2, 105, 2364, 107, 3048, 659, 11045, 236761, 108, 9259, 236888, 106, 107, 105, 4368, 107]
    assert render_chat(source, messages) == ids


def test_ids_of_names(source):
    assert (source.pad_id, source.eos_id, source.bos_id, source.unk_id) == (0, 1, 2, 3)
    assert (source.start_of_turn_id, source.end_of_turn_id, source.size) == (105, 106, 262145)
    assert [source.id_of(n) for n in ("<start_of_image>", "<end_of_image>", "<image_soft_token>")] == [
        255999,
        256000,
        262144,
    ]
    assert source.control_ids == {*range(107), *range(255999, 262145)}
    for rows in (262144, 262145, 262208):
        source.require_rows(rows, "m")


def test_derived_merges_are_the_published_ones_in_the_published_order(official_json, spm_lists):
    merges = merges_of(Vocabulary.checked(*spm_lists, "v"))
    assert len(merges) == 514_906
    assert merges == official_json["model"]["merges"]


def test_the_vocabulary_for_gguf_is_what_llama_cpp_writes(gguf_lists, spm_lists):
    """Space runs as plain spaces, -1000 for what text is searched for, ranks as in Google's file."""
    pieces, scores, types = gguf_lists
    assert pieces[138:140] == ["  ", "   "]
    assert pieces[262_143:] == ["<unused6241>", "<image_soft_token>"]
    assert types[:107] == [3] * 107
    assert types[107:238] == [4] * 131
    assert types[238:494] == [6] * 256
    assert types[494:255_968] == [1] * (255_968 - 494)
    assert types[255_968:255_999] == [4] * 31
    assert types[255_999:] == [3] * 6_146
    assert scores[494:255_968] == spm_lists[1][494:255_968]
    assert {score for score, t in zip(scores, types, strict=True) if t in (3, 4)} == {-1000.0}


def test_saved_from_a_gguf_vocabulary_it_is_the_published_file(official, official_json, gguf_lists, tmp_path):
    """Vocabulary, merges, added tokens with their flags, normaliser, decoder: equal as JSON."""
    Tokenizer.from_vocabulary(*gguf_lists).save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    saved["model"]["merges"] = [tuple(pair) for pair in saved["model"]["merges"]]
    saved["model"]["vocab"].pop("<image_soft_token>")  # the published file has it as an added token only
    for section, published in official_json.items():
        assert saved[section] == published, section
    mine = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    theirs = json.loads((official / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in set(mine) - {"chat_template", "eos_token"}:
        assert mine[key] == theirs[key], key


def test_the_published_template_is_gemmas(official):
    pytest.importorskip("jinja2")
    assert is_gemma_template(json.loads((official / "tokenizer_config.json").read_text())["chat_template"])


@pytest.fixture(scope="module")
def engine(official):
    return Tokenizer.load(official)


@pytest.fixture(scope="module")
def table(engine):
    return VocabularyTable(engine.to_table())


def test_the_mapped_table_gives_the_published_ids(table, texts, expected):
    for text, literal in zip(texts, expected[1], strict=True):
        assert table.encode(text) == literal, repr(text)


def test_the_mapped_table_splits_long_texts_alike(table, engine, repo_root):
    for path in [*repo_root.glob("docs/*.md"), *repo_root.glob("gemworks/*/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert table.encode(text) == engine.encode(text), path


def test_the_mapped_table_knows_every_name_and_id(table, engine):
    assert list(table.names) == engine._names
    assert all(table.id_of(engine._names[i]) == i for i in range(0, engine.size, 13))


def test_the_second_load_maps_the_table(official, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path))
    source = official / "tokenizer.json"
    assert tokenizer_cache._from_table(source, lambda: pytest.fail("parsed")) is None
    kept = tokenizer_cache._kept(source, engine, lambda: pytest.fail("parsed"))
    assert kept is not engine, "the parsed tokenizer stays in memory"
    mapped = tokenizer_cache._from_table(source, lambda: pytest.fail("parsed"))
    question = [{"role": "user", "content": "Why <start_of_turn> is\n\nthe sky blue?  "}]
    assert mapped is not None and render_chat(mapped, question) == render_chat(engine, question)
    [path] = (tmp_path / "tokenizers").iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    assert tokenizer_cache._from_table(source, lambda: pytest.fail("parsed")) is None
