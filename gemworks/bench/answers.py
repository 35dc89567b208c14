"""Whether systems that are about to be timed compute the same thing: scores of the next token, ours and llama.cpp's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gemworks.bench.rows import SHORT_CONTEXT, prompt
from gemworks.bench.system import COMPARED, SystemSpec
from gemworks.model.config import TextConfig

# Blocks of 32 are the same numbers bit for bit in ours and in llama.cpp's files; the int8 table of the main one has a
# scale for a row here and for a block there. The twin, which has bf16, is compared with the file nearest to that.
PAIRS = [(ours, rival) for rival, ours in COMPARED.items() if rival.startswith("llama.cpp")]
PAIRS += [("xla bf16", "llama.cpp q8_0")]

# Files whose table has numbers that none of ours has, and why: their scores differ as far as the formats do.
OTHER_WEIGHTS = {"llama.cpp q4_0-q6_k": "its table is in Q6_K, ours in int4"}

# Both quantize activations to 8 bits, each in its own places: random 270M and 1B came 3 to 5 % apart.
AGREE = 0.1

_PROMPTS, _TOKENS, _SCORES = 3, 48, 4096


def compare(
    config: TextConfig, workers: Mapping[str, tuple[SystemSpec, Any]], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return for every pair that is there how far apart their scores are, and say so.

    A pair of different weights is not compared: its "agree" is None, and why_not_compared says why.
    """
    wanted = np.random.default_rng(1).integers(0, config.vocab_size, _SCORES).tolist()
    rows = []
    for pair in PAIRS:
        if not set(pair) <= workers.keys():
            continue
        if why := OTHER_WEIGHTS.get(pair[1]):
            say(f"{pair[0]} and {pair[1]}: answers not compared, {why}")
            rows.append({"ours": pair[0], "rival": pair[1], "agree": None, "why_not_compared": why})
            continue
        distances, same = [], 0
        for i in range(_PROMPTS):
            ids = prompt(_TOKENS, 1000 + i, config)
            tokens, scores = [], []
            for name in pair:
                worker = workers[name][1]
                worker.prepare(context=SHORT_CONTEXT, sequences=1)
                token, found = worker.scores(ids=ids, wanted=wanted)
                tokens.append(token)
                scores.append(found)
            distances.append(relative_distance(*scores))
            same += tokens[0] == tokens[1]
        agree = max(distances) <= AGREE
        verdict = "they agree" if agree else "THEY DISAGREE, and their times say nothing"
        tokens_alike = f"{same} of {_PROMPTS} next tokens alike"
        say(f"{pair[0]} and {pair[1]}: scores {max(distances):.1%} apart, {tokens_alike}: {verdict}")
        found = {"relative_distance": max(distances), "same_tokens": same, "prompts": _PROMPTS, "agree": agree}
        rows.append({"ours": pair[0], "rival": pair[1], **found})
    return rows


def relative_distance(a: list[float], b: list[float]) -> float:
    """Return |a - b| / |b|, lengths of vectors."""
    return float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))
