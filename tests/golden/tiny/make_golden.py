"""Write golden.json: what transformers says of the embedded model, in float32.

    python tests/golden/tiny/make_golden.py

needs the [oracle] extra. Run it after the model was trained anew; test_tiny.py tells when that is.
"""

import hashlib
import io
import json
from pathlib import Path

import torch
import transformers
from PIL import Image

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

# Pictures beside this file, whether Pan & Scan may crop them, and questions; a conversation about each.
PICTURES = [
    ("circle.png", False, ["What colour is the circle?"]),
    ("three.png", False, ["How many shapes are there?", "Where is the star?", "What colour is the square?"]),
    ("wide.png", True, ["Which shape is blue?", "How many shapes do you see?"]),
]


def main() -> None:
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        MODEL, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    processor = transformers.AutoProcessor.from_pretrained(MODEL, backend="pil")
    tokenizer = processor.tokenizer
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
        "pictures": [about_picture(model, processor, *one) for one in PICTURES],
    }
    (HERE / "golden.json").write_text(dump(golden), encoding="utf-8")


def about_picture(model, processor, file: str, crops: bool, questions: list[str]) -> dict:
    """The last of some questions about a picture that stands before the first of them."""
    image = Image.open(io.BytesIO((HERE / file).read_bytes())).convert("RGB")
    messages = []
    for i, question in enumerate(questions):
        text = {"type": "text", "text": question}
        messages.append({"role": "user", "content": [text] if i else [{"type": "image"}, text]})
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(
            images=[image],
            text=prompt,
            return_tensors="pt",
            add_special_tokens=False,
            images_kwargs={"do_pan_and_scan": crops},
        )
        ids = inputs.pop("input_ids")[0].tolist()
        extra = {name: inputs[name] for name in ("pixel_values", "token_type_ids")}
        answer = generate(model, ids, **extra)
        said = processor.tokenizer.decode(answer).strip()
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return {
        "file": file,
        "crops": crops,
        "messages": messages[:-1],
        **case(model, processor.tokenizer, ids, answer, **extra),
    }


def generate(model, ids: list[int], **extra) -> list[int]:
    """Greedy ids without the one that ended the answer."""
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=[1, 106],
            pad_token_id=0,
            **extra,
        )
    answer = out[0, len(ids) :].tolist()
    return answer[:-1] if answer[-1] in (1, 106) else answer


def case(model, tokenizer, ids: list[int], answer: list[int], **extra) -> dict:
    """What is kept of one prompt: ids, the answer, and some logits after the prompt's last token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **extra).logits[0, -1, ::EVERY]
    return {
        "prompt_ids": ids,
        "answer_ids": answer,
        "answer": tokenizer.decode(answer),
        "last_logits": [round(float(x), 5) for x in logits],
    }


def dump(golden: dict) -> str:
    """JSON with one line a list, so that a change shows what changed."""
    lists = {
        key: [
            "  {\n" + ",\n".join(f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in one.items()) + "\n  }"
            for one in golden[key]
        ]
        for key in ("cases", "pictures")
    }
    head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items() if key not in lists]
    tails = [f" {json.dumps(key)}: [\n" + ",\n".join(found) + "\n ]" for key, found in lists.items()]
    return "{\n" + ",\n".join([*head, *tails]) + "\n}\n"


if __name__ == "__main__":
    main()
