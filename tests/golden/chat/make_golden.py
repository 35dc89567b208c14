"""Write golden.json: ids and assistant masks of 20 conversations, by transformers on the official vocabulary.

    python tests/golden/chat/make_golden.py DIRECTORY        with the official tokenizer.json and tokenizer_config.json

The template is the published one with the model's turns between {% generation %} marks, which transformers turns into
a mask by the offsets of tokens in the text. No text holds a control token's name, which transformers takes for the
token and we for its letters (tests/unit/data/test_chat.py). Nothing of Gemworks is imported. Masks are written as runs:
[not, is, not, is ...].
"""

import json
import sys
from itertools import groupby
from pathlib import Path

from transformers import AutoTokenizer

TEMPLATE = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = messages[0]['content'] -%}"
    "{%- set prefix = (first if first is string else first[0]['text']) + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for m in turns -%}"
    "{%- if m['content'] is string -%}{%- set said = m['content'] | trim -%}"
    "{%- else -%}{%- set ns = namespace(text='') -%}"
    "{%- for part in m['content'] -%}{%- set ns.text = ns.text + (part['text'] | trim) -%}{%- endfor -%}"
    "{%- set said = ns.text -%}{%- endif -%}"
    "{%- if m['role'] == 'assistant' -%}"
    "{{ '<start_of_turn>model\n' }}{%- generation -%}{{ said + '<end_of_turn>' }}{%- endgeneration -%}{{ '\n' }}"
    "{%- else -%}"
    "{{ '<start_of_turn>user\n' + (prefix if loop.first else '') + said + '<end_of_turn>\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def chat(*said: str, system=None) -> list[dict]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


CONVERSATIONS = [
    chat("Hi", "Hello."),
    chat("Hi", "Hello.", system="Be brief."),
    chat("One?", "1", "Two?", "2", "Three?", "3"),
    chat("  white space  ", "\n  around what is said\t\n"),
    chat("Write code.", "```python\ndef f(x):\n    return x + 1\n```"),
    chat("\n\nnewlines\n\n", "first\n\n\nsecond\n"),
    chat("What does <b> mean?", "It is <b>bold</b> text, <br/> not <start of turn>."),
    chat("\u4f60\u597d", "\u4f60\u597d\uff01\u5f88\u9ad8\u5174\u8ba4\u8bc6\u4f60\u3002"),
    chat("Emoji", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    chat("Numbers", "3.14159, -2, 1e10 and 007"),
    chat(parts("two ", " parts"), parts("and ", " two of the model")),
    chat("A list for a system", "Yes.", system=parts("Only the first part counts.", "lost")),
    chat("Arabic", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"),
    chat("Ends with a question", "Yes.", "And?"),
    chat("A long answer", "word " * 300),
    chat("model\n", "user\n"),
    chat("Tabs", "\ta\t\tb\tc"),
    chat("{{ jinja }} {% if %}", "{{ is left alone }} {% endif %}"),
    chat("One letter", "a", "One space and a letter", " b", system="  kept as it is  "),
    chat("\u00a0no-break\u3000space\u00a0", "\u00a0no-break\u3000space\u00a0"),
]


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    golden = []
    for messages in CONVERSATIONS:
        made = tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATE, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [int(one) for one in made["assistant_masks"]]
        runs = [len(list(group)) for _, group in groupby(mask)]
        assert mask[0] == 0
        golden.append({"messages": messages, "ids": list(made["input_ids"]), "runs": runs})
    path = Path(__file__).parent / "golden.json"
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in golden)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
