"""Make golden.json: what transformers' Gemma3ForCausalLM says of the seeded models of small_models.py.

    python tests/golden/model/make_golden.py        (needs the oracle extra; run from the repository)

The weights come from numpy's seeded generator, so only a few logits and the greedy answers are kept.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from small_models import random_arrays, random_ids, small_config  # noqa: E402

CASES = {
    "grouped, window 8": {},
    "one kv head, window 5, 13 layers": {"num_kv_heads": 1, "window": 5, "num_layers": 13},
    "factor 8, untied": {"global_scale": 8.0, "tied_head": False, "num_heads": 6, "num_kv_heads": 3},
}
SEED = 4
PROMPT = 30
ANSWER = 24
COLUMNS = 8  # logits kept of every position


def main() -> None:
    import torch
    import transformers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from gemworks.weights.config_json import json_from_text_config
    from gemworks.weights.names import hf_from_ours

    golden = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": {}}
    for name, change in CASES.items():
        config = small_config(**change)
        theirs = Gemma3TextConfig(**json_from_text_config(config, dtype="float32"), attn_implementation="eager")
        model = Gemma3ForCausalLM(theirs).float().eval()
        state = {hf_from_ours(n): torch.from_numpy(a) for n, a in random_arrays(config, SEED).items()}
        lacking = model.load_state_dict(state, strict=False)
        assert not lacking.unexpected_keys and set(lacking.missing_keys) <= {"lm_head.weight"}, lacking
        model.tie_weights()
        ids = random_ids(config, PROMPT, SEED)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
            answer = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, PROMPT, dtype=torch.long),  # else every id 0 is taken for padding
                max_new_tokens=ANSWER,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, PROMPT:]
        golden["cases"][name] = {
            "logits": [[round(float(x), 6) for x in row] for row in logits[:, :COLUMNS]],
            "answer": answer.tolist(),
        }
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
