"""The engine's thread and what other threads ask of it.

It starts with the first command, ends when there was none for a while, and starts again with the next one: a model that
nobody uses holds no thread, and one that nobody has any more can be collected while its thread waits.
"""

import atexit
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from gemworks.errors import BackendError

IDLE_S = 2.0  # starting a thread takes 0.1 ms


@dataclass(slots=True)
class _Inbox:
    """Commands that wait, and whether anybody has to be woken for them."""

    commands: deque[Callable[[], None]] = field(default_factory=deque)
    changed: threading.Condition = field(default_factory=threading.Condition)
    thread: threading.Thread | None = None
    closed: bool = False


class Worker:
    """Runs commands and `work` in one thread.

    work() computes until nothing is left to do, and calls `take_commands` now and then. end(error) is called once when
    the worker is closed, or when `work` raised; both must be bound methods, which the worker does not keep alive.
    """

    def __init__(self, work: Callable[[], object], end: Callable[[BaseException], None]):
        self._inbox = _Inbox()
        self._work, self._end = weakref.WeakMethod(work), weakref.WeakMethod(end)
        _WORKERS.add(self)

    @property
    def has_commands(self) -> bool:
        """Whether something was asked that was not begun."""
        return bool(self._inbox.commands)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._inbox.closed

    def do(self, command: Callable[[], None]) -> None:
        """Have the thread run a command soon. Raises BackendError after `close`."""
        inbox = self._inbox
        with inbox.changed:
            if inbox.closed:
                raise BackendError("this engine was closed; load the model again.")
            inbox.commands.append(command)
            inbox.changed.notify_all()
            if inbox.thread is None:
                _close_at_exit()
                _start(inbox, self._work, self._end)

    def wait(self, command: Callable[[], None]) -> None:
        """Have the thread run a command, and raise here what it raises."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                command()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.do(run)
        done.result()

    def take_commands(self) -> None:
        """Run what was asked so far; for the thread itself."""
        while self._inbox.commands:
            self._inbox.commands.popleft()()

    def close(self) -> None:
        """End the thread after the step it is in."""
        inbox = self._inbox
        with inbox.changed:
            inbox.closed = True
            inbox.changed.notify_all()
            thread = inbox.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=60)


def _start(inbox: _Inbox, work: "weakref.WeakMethod", end: "weakref.WeakMethod") -> None:
    inbox.thread = threading.Thread(target=_serve, args=(inbox, work, end), name="engine", daemon=True)
    inbox.thread.start()


def _serve(inbox: _Inbox, work: "weakref.WeakMethod", end: "weakref.WeakMethod") -> None:
    """Work until the worker is closed, its owner is gone, or there was nothing to do for a while."""
    while not inbox.closed and (call := work()) is not None:
        try:
            call()
        except Exception as error:
            if (stop := end()) is not None:
                stop(error)
            with inbox.changed:
                inbox.thread = None
                if inbox.commands:  # asked meanwhile, and nobody else would start a thread for it
                    _start(inbox, work, end)
            raise
        del call
        with inbox.changed:
            if not inbox.changed.wait_for(lambda: inbox.commands or inbox.closed, timeout=IDLE_S):
                inbox.thread = None
                return
    if (stop := end()) is not None:
        while inbox.commands:  # so that `stop` reaches who asked just before
            inbox.commands.popleft()()
        stop(BackendError("this engine was closed; load the model again."))


_WORKERS: "weakref.WeakSet[Worker]" = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """A thread that computes while the interpreter goes away would crash in the device's library."""
    atexit.register(lambda: [worker.close() for worker in list(_WORKERS)])
