"""Which rivals are installed, and what to do about those that were asked for and are not."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from gemworks.errors import ConfigError

RIVALS = ("llama.cpp", "openvino")

_HOW = {
    "llama.cpp": 'pip install "gemworks[bench-rivals]" (built from source, about 15 minutes on two cores)',
    "openvino": 'in an environment of its own: pip install openvino-genai "optimum-intel[openvino]" "transformers<5", '
    "then --openvino-python ITS/bin/python",
}


@dataclass(frozen=True, slots=True)
class Rivals:
    """The rivals that take part. `openvino_python` is the Python that has openvino-genai."""

    llama_cpp: bool = False
    openvino_python: str | None = None


def find(asked: str, openvino_python: str | None = None) -> Rivals:
    """Return the rivals that `asked` names: "none", "all" (those installed) or a list such as "llama.cpp,openvino".

    Raises ConfigError for an unknown name, and for one that is named and not installed.
    """
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if names == ["none"]:
        return Rivals()
    wanted = RIVALS if names == ["all"] else tuple(names)
    for name in wanted:
        if name not in RIVALS:
            raise ConfigError(f'--rivals must be all, none or some of {", ".join(RIVALS)}, got "{name}".')
    python = openvino_python or sys.executable
    is_here = {
        "llama.cpp": lambda: _has_llama_cpp(),
        "openvino": lambda: _has_openvino(python),
    }
    found = {name for name in wanted if is_here[name]()}
    if names != ["all"]:
        for name in wanted:
            if name not in found:
                raise ConfigError(f"{name} is not installed here. {_HOW[name]}")
    return Rivals(llama_cpp="llama.cpp" in found, openvino_python=python if "openvino" in found else None)


def _has_llama_cpp() -> bool:
    try:
        version("llama-cpp-python")
    except PackageNotFoundError:
        return False
    return True


def _has_openvino(python: str) -> bool:
    """Whether that Python imports it; it may be another than this one."""
    try:
        return subprocess.run([python, "-c", "import openvino_genai"], capture_output=True).returncode == 0
    except OSError as error:
        raise ConfigError(
            f"--openvino-python must be a Python to run, and {python} is not: {error.strerror}."
        ) from error
