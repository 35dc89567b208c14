"""Write golden.json: what transformers says of the embedded model, in float32.

    python tests/golden/tiny/make_golden.py

needs the [oracle] extra. Run it after the model was trained anew; test_tiny.py tells when that is.
"""

import hashlib
import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "gemworks" / "assets" / "tiny"
MAX_TOKENS = 48
EVERY = 16  # one logit in so many is kept

# Conversations of one to three questions; the model answers the last one.
CHATS = [
    ["Hello!"],
    ["Who are you?"],
    ["What is the capital of France?"],
    ["What is 12 + 34?"],
    ["Spell garden."],
    ["What is the opposite of hot?", "And of big?"],
    ["My name is Anna.", "What is 7 - 3?", "What is my name?"],
    ["Write a poem about rain.", "Thanks!", "Count from 5 to 12."],
    # Longer than three windows of 64 tokens, so that every ring has wrapped three times.
    [
        "My name is Tom.",
        "Count from 1 to 30.",
        "Tell me a story about a fox.",
        "Count from 40 to 60.",
        "What is my name?",
    ],
]
TEXTS = ["Once upon a time", "Monday, Tuesday,"]


def main() -> None:
    model = transformers.Gemma3ForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    cases = []
    for questions in CHATS:
        messages = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            answer = generate(model, ids)
            prompt = list(messages)
            messages.append({"role": "assistant", "content": tokenizer.decode(answer).strip()})
        cases.append({"messages": prompt, **case(model, tokenizer, ids, answer)})
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        cases.append({"text": text, **case(model, tokenizer, ids, generate(model, ids))})
    golden = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "weights_sha256": hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "logit_every": EVERY,
        "cases": cases,
    }
    (HERE / "golden.json").write_text(dump(golden), encoding="utf-8")


def generate(model, ids: list[int]) -> list[int]:
    """Greedy ids without the one that ended the answer."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=[1, 106], pad_token_id=0
        )
    answer = out[0, len(ids) :].tolist()
    return answer[:-1] if answer[-1] in (1, 106) else answer


def case(model, tokenizer, ids: list[int], answer: list[int]) -> dict:
    """What is kept of one prompt: ids, the answer, and some logits after the prompt's last token."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1, ::EVERY]
    return {
        "prompt_ids": ids,
        "answer_ids": answer,
        "answer": tokenizer.decode(answer),
        "last_logits": [round(float(x), 5) for x in logits],
    }


def dump(golden: dict) -> str:
    """JSON with one line a list, so that a change shows what changed."""
    head = {key: value for key, value in golden.items() if key != "cases"}
    cases = [
        "  {\n" + ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in one.items()) + "\n  }"
        for one in golden["cases"]
    ]
    return json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n' + ",\n".join(cases) + "\n ]\n}\n"


if __name__ == "__main__":
    main()
