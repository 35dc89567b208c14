"""Attacks that need a call of their own: those that use things up, never end, or send something else than a result.

Sent into the sandbox as source, like attack_code.py. Counts end at a bound: a sandbox which does not hold breaks
nothing on the machine that runs the test.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

_LIBC = ctypes.CDLL(None, use_errno=True)


def allocate():
    return len(bytearray(10 << 30))


def start_threads():
    import threading

    count = 1
    try:
        for _ in range(64):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    return count


def fork_bomb():
    count = 1
    try:
        for _ in range(64):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            count += 1
    except OSError:
        pass
    return count


def daemonize(marker):
    """Leave a process that has a session of its own and another parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _LIBC.prctl(15, marker.encode(), 0, 0, 0)
            time.sleep(60)
        os._exit(0)
    os.wait()
    return "left one"


def loop_for_ever():
    print("begun", flush=True)
    while True:
        pass


def ignore_signals():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    print("begun", flush=True)
    while True:
        time.sleep(1)


def stop_itself():
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def write_much():
    """Bytes that /tmp took, in files of 1 MiB and in one large file."""
    total = 0
    try:
        for number in range(64):
            with open(f"f{number}", "wb") as file:
                total += file.write(b"x" * (1 << 20))
    except OSError:
        pass
    return total


def write_one_large():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    total = 0
    try:
        with open("large", "wb", buffering=0) as file:
            while total < 64 << 20:
                total += file.write(b"x" * (1 << 18))
    except OSError:
        pass
    return total


def fill_inodes():
    count = 0
    try:
        for number in range(20_000):
            os.close(os.open(f"i{number}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError:
        pass
    return count


def open_many():
    count = 0
    try:
        while count < 2000:
            os.open("/dev/null", os.O_RDONLY)
            count += 1
    except OSError:
        pass
    return count


def forge():
    for fd in range(3, 10):
        with contextlib.suppress(OSError):
            os.write(fd, b"0" * 32 + b"0000000e" + b'{"value": 666}')
    return "honest"


def forge_by_program():
    """A program that the tool starts writes a result to every descriptor it has inherited."""
    import subprocess

    for fd in range(3, 10):
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, True)
    code = "import os\nfor fd in range(3, 10):\n try: os.write(fd, b'{\"value\": 666}')\n except OSError: pass"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], close_fds=False, check=True, executable=sys.executable)
    return "honest"


def huge_result():
    return "x" * (20 << 20)


def deep_result():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def not_json():
    return {1, 2}


def not_a_number():
    return float("nan")


def escapes():
    text = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\U000e0041"
    print(text)
    print(text, file=sys.stderr)
    return {"text": text, text: [text]}


def print_much():
    for _ in range(2000):
        print("x" * 1000)
    return "done"


def leave():
    os._exit(0)


def leave_politely():
    sys.exit(3)


def close_everything():
    print("begun", flush=True)
    for fd in range(64):
        with contextlib.suppress(OSError):
            os.close(fd)
    time.sleep(60)
