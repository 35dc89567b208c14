"""The few sizes that programs are compiled for, and pools made of. Plain integers; no jax.

A program takes seconds to compile and 10 MB, so what differs from step to step is padded to one of these.
"""

PAGE_SIZE = 16  # tokens of a page, of global layers and of the prefix cache's local ones

# Columns of a prefill step. A chunk is padded to the next of these, so at most half of it is wasted; each is one more
# program to compile (4 to 8 s for 1B on two cores).
PREFILL_COLUMNS = (16, 32, 64, 128, 256, 512)

# Guessed tokens of a draft: with the known one, columns are whole rows of the kernels' tiles.
DRAFT_LENGTHS = (3, 7)
DRAFT_COLUMNS = tuple(length + 1 for length in DRAFT_LENGTHS)

# Rows that may carry drafts in one step: with more, what is refused costs more than what is accepted saves.
MAX_DRAFT_ROWS = 4


def decode_sizes(most: int) -> list[int]:
    """Return the numbers of rows of decode steps without a chunk: powers of two up to the most."""
    sizes = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*sizes, most]


def mixed_sizes(most: int) -> list[int]:
    """Return the numbers of decode rows beside a chunk: few, as padding rows cost little there."""
    return sorted({min(4, most), most})


def draw_sizes(most: int) -> list[int]:
    """Return the numbers of rows that draws apart from a step are compiled for: few, as each is a large program."""
    return [*(size for size in (1, 4) if size < most), most]


def few_sizes(most: int) -> list[int]:
    """Return the numbers of rows that draws among few tokens are compiled for; a padding row costs little there."""
    return sorted({1, most})


def step_sizes(most: int, *, draft: int = 0, chunks: tuple[int, ...] = PREFILL_COLUMNS) -> list[tuple[int, int, int]]:
    """Return (decode rows, their columns, columns of the chunk) of every step of an engine of `most` sequences."""
    columns = [1, *(c for c in DRAFT_COLUMNS if c <= draft + 1)]
    sizes = [(rows, C, 0) for rows in decode_sizes(most) for C in columns if C == 1 or rows <= MAX_DRAFT_ROWS]
    return sizes + [(rows, 1, chunk) for rows in (0, *mixed_sizes(most)) for chunk in chunks]


def ring_slots(window: int | None, context: int, page_size: int, draft: int = 0) -> int:
    """Return the positions a ring holds: the window and a draft, in whole pages, and never more than a text has.

    Slots are whole pages so that rings and local pages can be copied page by page. window None: there are no rings, and
    one page stands for none.
    """
    return -(-min((window or 1) + draft, context) // page_size) * page_size
