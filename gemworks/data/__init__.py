"""From raw text to batches: read, filter, pack, mix. No jax here.

    readers  ->  filtering (rules, duplicates, contamination)  ->  packing  ->  mixture  ->  batches
    jsonl, text,  kept shards, decisions, report.json, .html       token ids,   weights of   Batch of a step,
    parquet                                                        rows          groups       a pure function

What a training step sees is a pure function of (packed stores, mixture, seed, step): nothing is iterated, nothing is
buffered, so a resumed or a re-sharded run sees the same, and `describe(step)` can say afterwards what it was.
"""

from gemworks.data.batches import Batch, PackedSource

__all__ = ["Batch", "PackedSource"]
