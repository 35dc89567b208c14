"""The two halves of a layer with training's products; the arithmetic is ops/xla/block.py's."""

from functools import partial

from gemworks.ops.train.product import linear
from gemworks.ops.xla import block

qkv = partial(block.qkv, product=linear)
block_tail = partial(block.block_tail, product=linear)
