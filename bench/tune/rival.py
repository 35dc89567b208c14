"""transformers' Gemma 3 with PEFT's LoRA as a system of bench/tune: python -m bench.tune.rival.

The usual loop: base in the dtype, adapters in fp32, autocast for bfloat16, sdpa attention, fused AdamW on the adapters,
clipping.
"""

import resource
from typing import Any

import torch

from bench.train import rival
from bench.train.answering import answer_calls
from bench.train.shapes import Shape
from gemworks import machine


def load(shape: dict[str, Any], dtype: str, rank: int) -> dict[str, Any]:
    """Make the model of bench/train with our weights, add the adapters, and do the first steps."""
    from peft import LoraConfig, get_peft_model

    timed = Shape(**shape)
    model = rival.made(timed).to(getattr(torch, dtype))
    told = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    adapted = get_peft_model(model, told)
    if timed.name == "1b":
        adapted.enable_input_require_grads()  # else checkpointing has nothing to differentiate
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    ids, targets = (torch.tensor(one, dtype=torch.long, device=rival.DEVICE) for one in timed.batch())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    rival._kept.update(model=adapted, ids=ids, targets=targets, optimizer=optimizer, dtype=dtype)
    loss = rival.step()["loss"]
    rival.step()
    how = f"{rival.DEVICE}, {torch.get_num_threads()} threads, {sum(p.numel() for p in trained):,} trained"
    return {"loss": loss, "how": how, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    torch.set_num_threads(machine.usable_cores())
    answer_calls({"load": load, "step": rival.step})
