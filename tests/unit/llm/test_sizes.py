"""How large an engine is made where nobody says."""

import pytest

from gemworks.llm.sizes import pool_sizes
from gemworks.model.config import RELEASED
from gemworks.model.costs import weight_bytes


@pytest.mark.parametrize("size", ["270m", "1b", "4b"])
def test_sequences_that_were_asked_for_have_pages(size):
    sizes = pool_sizes(RELEASED[size], context=512, kv="bfloat16", max_sequences=16)
    assert (sizes.pages - 1) * sizes.page_size >= 16 * 512


@pytest.mark.parametrize("size", list(RELEASED))
@pytest.mark.parametrize("most", [None, 1, 16])
def test_pages_are_one_context_and_what_costs_little(size, most):
    sizes = pool_sizes(RELEASED[size], context=8192, kv="bfloat16", max_sequences=most)
    tokens = (sizes.pages - 1) * sizes.page_size
    assert 8192 < tokens <= sizes.max_sequences * 8704
    little = max(32e6, weight_bytes(RELEASED[size], "int4-b32") / 16)
    assert tokens == 8704 or sizes.pages * sizes.page_bytes <= little * (1 if most is None else 2)
