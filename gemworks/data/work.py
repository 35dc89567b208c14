"""Run a function over a stream of tasks in several processes, results in the order of the tasks, memory bounded.

Processes are spawned, not forked: the caller may have jax and its threads loaded. At most twice as many tasks as
processes are in flight, so a stream larger than memory is never read ahead.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

from gemworks.errors import CapacityError, ConfigError

T = TypeVar("T")
R = TypeVar("R")


def run_in_order(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    processes: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Generator[R, None, None]:
    """Yield function(task) for every task, in order. `prepare(*arguments)` runs once in each process, before.

    `function` and `prepare` are module-level functions. An exception of theirs is raised here. One process: this one.
    Use it inside contextlib.closing, so that an interrupt ends the processes at once.
    """
    if processes < 1:
        raise ConfigError(f"the number of processes must be at least 1, got {processes}.")
    if processes == 1:
        if prepare is not None:
            prepare(*arguments)
        yield from map(function, tasks)
        return
    others = set(active_children())

    def end_workers() -> None:
        # Ended, not asked to end: a pool of Python 3.11 that was interrupted under load waited for ever for a worker
        # that waited for its queue. What they compute is nobody's any more, and they write nothing.
        for process in set(active_children()) - others:
            process.terminate()

    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start, initargs=(prepare, arguments)
    )
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise CapacityError(
            "a worker process was ended from outside, most likely for want of memory.\n"
            "What is finished is kept: run the same command again with fewer --processes."
        ) from error
    except BaseException:
        end_workers()
        raise
    finally:
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except BaseException:
            # Interrupted while it waited: Python 3.11 takes its thread for ended now, closes the queue at exit before
            # the workers were told to end, and waits for them.
            end_workers()
            raise


def _start(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent closes nothing that these processes wait for: each holds the queue's other end open itself.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "started by multiprocessing"
    parent.join()
    os._exit(1)
