"""What one key may ask of the server in any minute and at once. Plain arithmetic over a clock; no locks, no asyncio.

No window of 60 seconds, wherever it begins, holds more than the limit: what was admitted is kept with its time until 60
seconds later. A token bucket would admit twice the limit around a full one. Times within a second are kept as one, by
the latest of them, so a key costs 61 pairs of numbers whatever its limit is, and is let in at most a second late.

Called from the event loop's thread only.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gemworks.errors import LimitError
from gemworks.server.keys import Caller
from gemworks.server.settings import LimitSettings

WINDOW_S = 60.0
_GRAIN_S = 1.0


class Window:
    """Amounts admitted in the last 60 seconds, at most `limit` together."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._groups: deque[_Group] = deque()

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        while self._groups and self._groups[0].last + WINDOW_S <= now:
            self.used -= self._groups.popleft().amount

    def wait_s(self, amount: int, now: float) -> float:
        """Return the seconds until `amount` more would be admitted: 0 is now, infinity where it exceeds the limit."""
        self.expire(now)
        if amount > self.limit:
            return math.inf
        excess = self.used + amount - self.limit
        for group in self._groups:
            if excess <= 0:
                break
            excess -= group.amount
            if excess <= 0:
                return group.last + WINDOW_S - now
        return 0.0

    def add(self, amount: int, now: float) -> "_Group":
        """Count `amount` from now on, whether it fits or not, and return where it is kept, for `give_back`."""
        self.expire(now)
        self.used += amount
        if not self._groups or now - self._groups[-1].first >= _GRAIN_S:
            self._groups.append(_Group(now, now, 0))
        group = self._groups[-1]
        group.last = now
        group.amount += amount
        return group

    def give_back(self, group: "_Group", amount: int, now: float) -> None:
        """Take `amount` of what was added to a group back, if it still counts."""
        self.expire(now)
        if group.last + WINDOW_S > now:
            group.amount -= amount
            self.used -= amount

    def reset_s(self, now: float) -> float:
        """Return the seconds until nothing of what was admitted counts any more."""
        self.expire(now)
        return self._groups[-1].last + WINDOW_S - now if self._groups else 0.0


@dataclass(slots=True, eq=False)
class _Group:
    first: float
    last: float
    amount: int


@dataclass(slots=True)
class _Account:
    requests: Window | None
    tokens: Window | None
    concurrency: int | None
    running: int = 0


class Ticket:
    """One admitted call of a key. `charge` before computing, `settle` with what it took, `close` at its end."""

    __slots__ = ("_account", "_charges", "_clock", "_is_closed")

    def __init__(self, account: _Account, clock: Callable[[], float]):
        self._account, self._clock = account, clock
        self._charges: list[tuple[_Group, int]] = []
        self._is_closed = False

    def charge(self, tokens: int) -> None:
        """Count tokens against the key's limit. Raises LimitError; then nothing is counted."""
        window = self._account.tokens
        if window is None:
            return
        now = self._clock()
        wait = window.wait_s(tokens, now)
        if wait == math.inf:
            raise LimitError(
                f"this request may take {tokens:,} tokens (prompt and max_tokens), and its key may take "
                f"{window.limit:,} a minute. Lower max_tokens or shorten the prompt.",
                retry_after_s=WINDOW_S,
            )
        if wait > 0:
            raise LimitError(
                f"this key may take {window.limit:,} tokens a minute; {window.used:,} are taken and this request "
                f"may take {tokens:,}. Try again in {math.ceil(wait)} s.",
                retry_after_s=wait,
            )
        self._charges.append((window.add(tokens, now), tokens))

    def settle(self, tokens: int) -> None:
        """Say how many tokens the call took in all: the rest of what was charged is given back, or more is counted."""
        window = self._account.tokens
        if window is None:
            return
        now = self._clock()
        for group, charged in self._charges:
            window.give_back(group, max(0, charged - tokens), now)
            tokens -= min(charged, tokens)
        self._charges = []
        if tokens:
            window.add(tokens, now)

    def close(self) -> None:
        """Let another call of the key take this one's place."""
        if not self._is_closed:
            self._is_closed = True
            self._account.running -= 1

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return x-ratelimit-* as OpenAI's clients read them; empty without limits."""
        now, made = self._clock(), []
        for name, window in (("requests", self._account.requests), ("tokens", self._account.tokens)):
            if window is not None:
                reset = window.reset_s(now)
                told = {"limit": window.limit, "remaining": max(0, window.limit - window.used), "reset": _span(reset)}
                made += [(f"x-ratelimit-{word}-{name}".encode(), str(value).encode()) for word, value in told.items()]
        return made


class Limits:
    """The accounts of all keys."""

    def __init__(self, settings: LimitSettings, *, clock: Callable[[], float] = time.monotonic):
        self._settings, self._clock = settings, clock
        self._accounts: dict[str, tuple[Caller, _Account]] = {}

    def enter(self, caller: Caller) -> Ticket:
        """Count one call of a key. Raises LimitError; then nothing is counted."""
        account = self._account(caller)
        now = self._clock()
        whose = f'the key "{caller.name}"' if caller.name else "a caller"
        if account.concurrency is not None and account.running >= account.concurrency:
            raise LimitError(
                f"{whose} may have {account.concurrency:,} calls at the same time, and has as many. "
                "Wait for one to end.",
                retry_after_s=1.0,
            )
        if account.requests is not None:
            wait = account.requests.wait_s(1, now)
            if wait > 0:
                raise LimitError(
                    f"{whose} may make {account.requests.limit:,} calls a minute, and made as many. "
                    f"Try again in {math.ceil(wait)} s.",
                    retry_after_s=wait,
                )
            account.requests.add(1, now)
        account.running += 1
        return Ticket(account, self._clock)

    def _account(self, caller: Caller) -> _Account:
        known = self._accounts.get(caller.name)
        if known is not None and known[0] == caller:
            return known[1]
        own = self._settings
        made = _Account(
            _window(caller.requests_per_minute or own.requests_per_minute),
            _window(caller.tokens_per_minute or own.tokens_per_minute),
            caller.concurrency or own.concurrency,
        )
        if known is not None:  # the key's limits were changed: what it used in this minute still counts
            old = known[1]
            made.running = old.running
            for window, before in ((made.requests, old.requests), (made.tokens, old.tokens)):
                if window is not None and before is not None:
                    window._groups, window.used = before._groups, before.used
        self._accounts[caller.name] = (caller, made)
        return made


def _window(limit: int | None) -> Window | None:
    return Window(limit) if limit is not None else None


def _span(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1s, 20ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
