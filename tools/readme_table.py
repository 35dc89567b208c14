"""Write the tables in README.md from the code that knows the numbers.

    python tools/readme_table.py           rewrite what stands between the markers
    python tools/readme_table.py --check   exit with 1 and the difference where the file is out of date

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of TABLES.
"""

import difflib
import re
import sys
from pathlib import Path

from gemworks.model.config import RELEASED, TextConfig
from gemworks.model.costs import kv_bytes, num_parameters, weight_bytes

README = Path(__file__).parents[1] / "README.md"
CONTEXT = 8192


def sizes() -> str:
    """One row per released size. GB is 10^9 bytes."""
    header = [
        "model",
        "parameters",
        "weights, bf16",
        "4-bit file",
        f"KV at {CONTEXT:,} tokens",
        "if no layer had a window",
        "longest text",
    ]
    rows = [size_row(name, config) for name, config in RELEASED.items()]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size_row(name: str, config: TextConfig) -> list[str]:
    return [
        f"`gemma3:{name}`",
        f"{num_parameters(config) / 1e6:,.0f} M",
        gigabytes(weight_bytes(config, "bf16")),
        # What `gemworks convert` writes for q4_0: blocks of 32 with one scale, an 8-bit embedding.
        gigabytes(weight_bytes(config, "int4-b32", embed_format="q8_0")),
        gigabytes(kv_bytes(config, CONTEXT)),
        gigabytes(kv_bytes(config, CONTEXT, windowed=False)),
        f"{config.max_positions:,}",
    ]


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


TABLES = {"sizes": sizes}


def filled(text: str) -> str:
    """`text` with every generated table made anew."""
    pattern = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> int:
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "generated")
        )
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
