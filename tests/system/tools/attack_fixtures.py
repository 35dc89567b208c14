"""What the parent puts out to be found, and sandboxes by engine."""

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemworks.tools import Policy, Sandbox
from gemworks.tools.sandbox.means import ENGINES, Means, abilities
from gemworks.tools.sandbox.runner import Code

QUICK_SOURCE, SOURCE = (
    Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("attack_code", "attack_calls")
)
MIB = 1 << 20


def attack(name: str) -> Code:
    source = QUICK_SOURCE if f"def {name}(" in QUICK_SOURCE else SOURCE
    return Code(source, name, module="attack", file="attack.py")


def readable_by_all(path: str) -> bool:
    """Whether a user without rights gets to a file: every folder on the way may be entered by others."""
    real = Path(os.path.realpath(path))
    return bool(real.stat().st_mode & stat.S_IROTH) and all(p.stat().st_mode & stat.S_IXOTH for p in real.parents)


def interpreter_for(engine: str) -> str | None:
    """Without a mount namespace the tool's user must be able to read the interpreter, which lies in /root for some."""
    own = getattr(sys, "_base_executable", sys.executable)
    if engine != "landlock" or os.geteuid() != 0 or readable_by_all(own):
        return None
    return next((p for p in ("/usr/bin/python3",) if os.path.exists(p)), None) or pytest.skip(
        f"{own} is not readable for others, and there is no other Python"
    )


def why_not(engine: str) -> str:
    """Why an engine cannot be tried here, or "". A kernel that gives it must also hold what it promises."""
    if engine == "bubblewrap" and not shutil.which("bwrap"):
        return "the program bwrap is not installed"
    found = abilities()
    if engine == "landlock":
        return "" if found.landlock_abi >= 3 and found.seccomp else found.landlock
    return getattr(found, engine)


class Shut:
    """Sandboxes of one engine."""

    def __init__(self, engine: str):
        self.engine, self.interpreter = engine, interpreter_for(engine)

    def sandbox(self, **rights) -> Sandbox:
        rights = {"packages": False, "tmp_bytes": 0 if self.engine == "landlock" else 4 * MIB, "wall_s": 60.0} | rights
        return Sandbox(Policy(**rights), means=Means(self.engine), interpreter=self.interpreter)

    def run(self, name: str, *, arguments=None, **rights):
        return self.sandbox(**rights).call(attack(name), arguments or {})


@pytest.fixture(scope="session", params=ENGINES)
def shut(request) -> Shut:
    if why := why_not(request.param):
        pytest.skip(f"{request.param}: {why}")
    return Shut(request.param)


@pytest.fixture(scope="session")
def bait():
    """A secret file, an open descriptor on it, servers of every kind, a poisoned folder: what attacks look for."""
    with open_folder() as folder:
        yield from _bait(folder)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's are not: an attack shall meet the sandbox.

    Its path is short enough for a socket's.
    """
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _bait(folder: Path) -> Iterator[SimpleNamespace]:
    secret, owned, poison = folder / "secret", folder / "owned", folder / "poison"
    secret.write_text("the secret")
    owned.write_text("the parent's")
    for path in (secret, owned):
        path.chmod(0o666)
    poison.mkdir()
    for name in ("json", "string", "resource", "ctypes", "poison_module"):
        (poison / f"{name}.py").write_text("raise SystemExit('poisoned')")
    word = secrets.token_hex(8)
    held = os.open(secret, os.O_RDWR)
    os.set_inheritable(held, True)
    buffer = ctypes.create_string_buffer(b"in memory")
    received: list[bytes] = []
    with contextlib.ExitStack() as stack:

        def listening(family, kind, address) -> socket.socket:
            server = stack.enter_context(socket.socket(family, kind))
            server.bind(address)
            if kind == socket.SOCK_STREAM:
                server.listen()
            server.settimeout(0.05)
            threading.Thread(target=_receive, args=(server, kind, received), daemon=True).start()
            return server

        tcp = listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        udp = listening(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        listening(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket"))
        listening(socket.AF_UNIX, socket.SOCK_DGRAM, f"\0gemworks-{word}")
        (folder / "socket").chmod(0o777)
        info = secret.stat()
        target = {
            "secret": str(secret),
            "secret_id": [info.st_dev, info.st_ino],
            "owned": str(owned),
            "pid": os.getpid(),
            "group": os.getpgrp(),
            "address": ctypes.addressof(buffer),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(folder / "socket"),
            "abstract": f"gemworks-{word}",
            "word": word,
            "poison": str(poison),
            "shm_key": int(word[:7], 16),
            "own_network": False,
            "own_prctl": True,
        }
        texts = {"secret": "the secret", "owned": "the parent's"}
        yield SimpleNamespace(
            texts=texts, target=target, received=received, folder=folder, poison=poison, buffer=buffer
        )
        os.close(held)


def _receive(server: socket.socket, kind, received: list[bytes]) -> None:
    while server.fileno() >= 0:
        with contextlib.suppress(TimeoutError):
            try:
                if kind == socket.SOCK_STREAM:
                    connection, _ = server.accept()
                    connection.close()
                    received.append(b"a connection")
                else:
                    received.append(server.recv(100))
            except OSError as error:
                if not isinstance(error, TimeoutError):
                    return
                raise
