"""What every test gets: a home of its own, repeatable hypothesis runs, and the optional data beside the repository."""

import lzma
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
_HOMES = pytest.StashKey[tuple[pytest.MonkeyPatch, str]]()

# No deadline: the machine may be shared. Derandomized: the same commit gives the same answer; look for new cases with
# `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("gemworks", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gemworks")


def pytest_configure(config: pytest.Config) -> None:
    """Point what Gemworks and the hub's client write to at a temporary directory, before anything is imported."""
    home = tempfile.mkdtemp(prefix="gemworks-tests-")
    patch = pytest.MonkeyPatch()
    for name, folder in {"GEMWORKS_HOME": "models", "GEMWORKS_CACHE": "cache", "HF_HOME": "hub"}.items():
        patch.setenv(name, str(Path(home, folder)))
    for name in ("GEMWORKS_BACKEND", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        patch.delenv(name, raising=False)
    patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    config.stash[_HOMES] = (patch, home)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Undo `pytest_configure`."""
    if _HOMES in config.stash:
        patch, home = config.stash[_HOMES]
        patch.undo()
        shutil.rmtree(home, ignore_errors=True)


# `make test` gives a file to one of two processes (--dist loadfile), so that what its tests share is made once. These
# come first, being the longest: else one process would end alone with them.
_FIRST = ("tests/system/server", "tests/system/tools", "tests/unit/engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: not item.path.relative_to(ROOT).as_posix().startswith(_FIRST))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional data beside the repository (the official tokenizer, a corpus); skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def official(shared_data, tmp_path_factory) -> Path:
    """Directory with the official tokenizer.json and tokenizer_config.json."""
    packed_files = sorted((shared_data / "gemma3-tokenizer").glob("*.json.xz"))
    if len(packed_files) < 2:
        pytest.skip("no ../shared/data/gemma3-tokenizer/tokenizer.json.xz and tokenizer_config.json.xz")
    directory = tmp_path_factory.mktemp("official")
    for packed in packed_files:
        (directory / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return directory
