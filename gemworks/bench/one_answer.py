"""A process that loads a model, answers once and leaves: `python -m gemworks.bench.one_answer '{"path": ...}'`.

Prints a line with the first token, so that whoever started it knows when, and a JSON line at the end.
"""

import json
import re
import sys
from pathlib import Path

FIRST = "first token"


def main() -> None:
    """Answer as the JSON object on the command line asks: path, quant, embed, ids, count."""
    asked = json.loads(sys.argv[1])
    from gemworks.llm import LLM

    llm = LLM(asked["path"], quant=asked["quant"], embed=asked["embed"])
    answer = llm.stream(asked["ids"], temperature=0.0, max_tokens=asked["count"])
    next(answer)
    sys.stdout.write(FIRST + "\n")
    sys.stdout.flush()
    for _ in answer:
        pass
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes(), "context": llm.context}) + "\n")


def peak_bytes() -> int | None:
    """Most memory this process ever had resident, the file's mapped pages included; None where it is not told."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.M)
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
