"""Chats against a template written here from the specification (12.1), rendered by jinja2, tokenized as one text."""

import json
import random
from functools import cache

import pytest
import tokenizers

from gemworks.tokenizer import TEMPLATE, Tokenizer, chat_text, continue_chat, render_chat

jinja2 = pytest.importorskip("jinja2")

SPECIFIED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
  {%- if messages[0]['content'] is string -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
  {%- else -%}
    {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
  {%- endif -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set prefix = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
  {{ '<start_of_turn>' + {'user': 'user', 'assistant': 'model'}[m['role']] + '\n' }}
  {%- if loop.index0 == 0 -%}{{ prefix }}{%- endif -%}
  {%- if m['content'] is string -%}{{ m['content'] | trim }}
  {%- else -%}{%- for item in m['content'] -%}{{ item['text'] | trim }}{%- endfor -%}{%- endif -%}
  {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

WORDS = [
    "Hello",
    " there",
    "!",
    "\n",
    "\n\n",
    "\t",
    "  ",
    "   code",
    "\u3000",
    "\u00a0x",
    "\u4f60\u597d",
    "\U0001f600",
    "<b>",
    "{{ x }}",
]


@cache
def compiled(template):
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def render(template, messages, generation):
    return compiled(template).render(messages=messages, bos_token="<bos>", add_generation_prompt=generation)


def conversation(rng):
    """A random conversation with white space at every edge, some contents as lists, some with a system message."""

    def text():
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 8)))

    def content():
        return text() if rng.random() < 0.7 else [{"type": "text", "text": text()} for _ in range(rng.randint(0, 3))]

    messages = [{"role": ("user", "assistant")[i % 2], "content": content()} for i in range(rng.randint(1, 6))]
    if rng.random() < 0.5:
        system = text() if rng.random() < 0.6 else [{"type": "text", "text": text()}, {"type": "text", "text": "lost"}]
        messages.insert(0, {"role": "system", "content": system})
    return messages


@pytest.fixture(scope="module")
def conversations():
    rng = random.Random(3)
    return [(conversation(rng), rng.random() < 0.7) for _ in range(1500)]


@pytest.fixture(scope="module")
def ours(official):
    return Tokenizer.load(official)


def test_ids_equal_the_template_tokenized_as_one_text(official, ours, conversations):
    theirs = tokenizers.Tokenizer.from_file(str(official / "tokenizer.json"))
    for messages, generation in conversations:
        text = render(SPECIFIED, messages, generation)
        assert chat_text(messages, add_generation_prompt=generation) == text
        ids = render_chat(ours, messages, add_generation_prompt=generation)
        assert ids == theirs.encode(text, add_special_tokens=False).ids


def test_our_template_and_the_published_one_render_the_same(official, conversations):
    published = json.loads((official / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for messages, generation in conversations:
        text = render(SPECIFIED, messages, generation)
        assert render(TEMPLATE, messages, generation) == render(published, messages, generation) == text


def test_a_continued_conversation_equals_a_rendered_one(ours):
    """As long as the answer needs no trimming and splits as the model wrote it."""
    said = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi.\n\nHow are you?"}]
    new = [{"role": "user", "content": " Fine,\nthanks. "}]
    ids = render_chat(ours, said[:1]) + ours.encode(said[1]["content"]) + continue_chat(ours, new)
    assert ids == render_chat(ours, said + new)
