"""What this machine has to shut a tool in with, found by trying, and which of it a policy gets.

    bubblewrap    the bwrap program: namespaces, a root of its own
    namespaces    the same from here: as root directly, else in a user namespace
    landlock      no namespaces (a container that forbids them): Landlock, seccomp and limits alone. Children could
                  escape being killed and files on a real disk cannot be counted, so policies that ask for either
                  are refused there.

Landlock and seccomp are added to the first two where the kernel has them: two walls, each tested without the other.
"""

import functools
import itertools
import os
import shutil
import sys
from typing import NamedTuple

from gemworks.errors import BackendError, GemworksError
from gemworks.tools.sandbox import landlock, seccomp
from gemworks.tools.sandbox.policy import Policy

ENGINES = ("bubblewrap", "namespaces", "landlock")
_LEAST_ABI = 3  # before it, truncation is not handled


class Means(NamedTuple):
    """How one child is shut in."""

    engine: str
    landlock: bool = True
    seccomp: bool = True

    def __str__(self) -> str:
        also = [name for name in ("landlock", "seccomp") if getattr(self, name) and name != self.engine]
        return " + ".join([self.engine, *also])


class Abilities(NamedTuple):
    """What was found: for each engine "" where it works, else why not; Landlock's ABI or 0; whether filters are
    taken."""

    bubblewrap: str
    namespaces: str
    landlock: str
    landlock_abi: int
    seccomp: bool


@functools.cache
def abilities() -> Abilities:
    """Try every engine once with a call that does nothing; about 0.1 s each, remembered."""
    if sys.platform != "linux":
        why = f"the sandbox is made of Linux's means, and this is {sys.platform}"
        return Abilities(why, why, why, 0, False)
    version, filters = landlock.abi(), seccomp.is_available()
    tried = {}
    for engine in ENGINES:
        if engine == "bubblewrap" and not shutil.which("bwrap"):
            tried[engine] = "the program bwrap is not installed"
        elif engine == "landlock" and (version < _LEAST_ABI or not filters):
            tried[engine] = _too_old(version, filters)
        else:
            tried[engine] = _try(Means(engine, landlock=version > 0, seccomp=filters))
    return Abilities(**tried, landlock_abi=version, seccomp=filters)


def _too_old(version: int, filters: bool) -> str:
    missing = [f"Landlock ABI {_LEAST_ABI} (Linux 6.2; here {version})"] if version < _LEAST_ABI else []
    return " and ".join(missing + ([] if filters else ["seccomp filters"])) + " are not there"


def _try(means: Means) -> str:
    from gemworks.tools.sandbox.runner import Code, Sandbox

    tiny = Policy(packages=False, tmp_bytes=0 if means.engine == "landlock" else 1 << 20, filter_syscalls=means.seccomp)
    try:
        outcome = Sandbox(tiny, means=means).call(Code.of_text("def nothing(): return 1", "nothing"), {})
    except GemworksError as error:
        return str(error)
    return "" if outcome.value == 1 else f"a trial call ended with: {outcome.error}"


def choose(policy: Policy, found: Abilities) -> Means:
    """The strongest means that hold all of a policy; BackendError says what is missing where there are none."""
    if policy.filter_syscalls and not found.seccomp:
        raise BackendError(
            "the sandbox cannot filter system calls here: the kernel takes no seccomp filters.\n"
            "Set filter_syscalls=False in the policy to do without, or run this on another kernel."
        )
    for engine in ("bubblewrap", "namespaces"):
        if not getattr(found, engine):
            return Means(engine, landlock=found.landlock_abi > 0, seccomp=policy.filter_syscalls)
    reasons = [f"{engine}: {getattr(found, engine)}" for engine in ("bubblewrap", "namespaces")]
    if found.landlock:
        raise BackendError("tools cannot be shut in on this machine:\n  " + "\n  ".join([*reasons, found.landlock]))
    needs = []
    if policy.tmp_bytes:
        needs.append("a private /tmp of limited size (tmp_bytes=0 does without)")
    if policy.children:
        needs.append("child processes that are all killed (children=False does without)")
    if not policy.filter_syscalls:
        needs.append("no seccomp filter (without namespaces the filter is what holds)")
    if needs:
        raise BackendError(
            f"this policy needs namespaces for: {'; '.join(needs)}.\n  " + "\n  ".join(reasons) + "\n"
            "Change the policy, install bubblewrap, or in a container allow namespaces (docker: --cap-add SYS_ADMIN "
            "or --security-opt seccomp=unconfined)."
        )
    return Means("landlock")


def probe() -> list[tuple[str, str]]:
    """What can be had here, as rows of (name, text) for a table."""
    found = abilities()
    rows = [(engine, getattr(found, engine).replace("\n", " ") or "works") for engine in ENGINES]
    rows.append(("landlock abi", str(found.landlock_abi) if found.landlock_abi else "none"))
    rows.append(("seccomp", "works" if found.seccomp else "not there"))
    try:
        rows.append(("tools run in", str(choose(Policy(), found))))
    except BackendError as error:
        rows.append(("tools run in", f"nothing: {str(error).splitlines()[0]}"))
    return rows


def unprivileged_uid() -> int | None:
    """A user that nobody is, for a child of root; another one each time, so that limits of tasks do not add up."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        inside, _, count = (int(word) for word in file.readline().split())
    top = inside + count - 1
    # High numbers are nobody's: below 2^31 where all are mapped, else the upper end of what the container has.
    base, room = (0x6A000000, 1 << 24) if top > 0x6FFFFFFF else (max(1, top - 2048), 2048)
    return base + (os.getpid() * 4096 + next(_COUNTER)) % room


_COUNTER = itertools.count()
