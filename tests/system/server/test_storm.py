"""A server under clients that do everything wrong: it answers, gives nothing away, loses nothing and does not grow.

The short form sends 80 requests to the server that other tests use. The exhaustive one sends 5,000 to a server whose
engine can be asked to check itself, with a queue so short that it is full at times.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from storm import Question, Storm, alone, draw_questions, is_clear

ROOT = Path(__file__).parents[3]
QUEUE = 16
MANNERS = {"whole", "streamed", "slow", "cancelled", "dropped", "pipelined", "rubbish", "not_http"}
REST = ("gemworks_calls_running", "gemworks_calls_waiting", "gemworks_engine_running", "gemworks_engine_waiting")


def gauges(url: str) -> dict[str, float]:
    """The values of /metrics without labels, those of one model summed up."""
    with urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found: Counter = Counter()
    for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", text, re.M):
        found[name] += float(value)
    return dict(found)


def faults(url: str) -> set[int]:
    """The statuses of 500 and more that the server has noted, for clients that waited and for those that left."""
    with urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    return {int(status) for status in re.findall(r'^gemworks_requests_total\{.*status="(5\d\d)"', text, re.M)}


def wait_for_rest(url: str) -> None:
    """Wait until nothing runs or waits any more; fail where something does after a minute."""
    until, told = time.monotonic() + 60, {}
    while time.monotonic() < until:
        told = {name: gauges(url)[name] for name in REST}
        if not any(told.values()):
            return
        time.sleep(0.05)
    pytest.fail(f"something is left of the storm: {told}")


def expected_alone(url: str, questions: list[Question]) -> dict[Question, str]:
    """What each question is answered when nobody else asks; half of them as a stream, which must say the same."""
    where = urlsplit(url)
    assert where.hostname is not None and where.port is not None
    return {one: alone(where.hostname, where.port, one, stream=bool(i % 2)) for i, one in enumerate(questions)}


def rage(url: str, expected: dict[Question, str], *, count: int, clients: int, seed: int) -> Storm:
    where = urlsplit(url)
    assert where.hostname is not None and where.port is not None
    storm = Storm(where.hostname, where.port, expected, seed=seed)
    asyncio.run(storm.rage(count, clients))
    assert storm.wrong == []
    return storm


@pytest.mark.exhaustive
def test_a_storm_leaves_nothing_behind(server):
    """Every complete answer is that of the request alone, no 5xx but 503, and memory for a whole context is free."""
    where = urlsplit(server.url)
    questions = [one for one in draw_questions(14, seed=0) if is_clear(str(where.hostname), int(where.port or 0), one)]
    assert {one.path for one in questions} == {"/v1/completions", "/v1/chat/completions", "/api/generate"}
    expected = expected_alone(server.url, questions)
    assert sum(map(bool, expected.values())) >= 6
    storm = rage(server.url, expected, count=80, clients=24, seed=1)
    assert storm.complete > 40
    assert set(storm.manners) == MANNERS
    wait_for_rest(server.url)
    assert faults(server.url) <= {503}
    # 60 of the 67 pages: more than a leak of seven would leave.
    [longest] = expected_alone(server.url, [Question("/v1/completions", "the " * 460, 16)]).values()
    assert longest


class StormServer:
    """tests/storm_server.py, running."""

    def __init__(self, folder: Path):
        self.log = folder / "stderr"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "storm_server.py"), str(folder), str(QUEUE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        found = re.search(r"http://\S+", self._line())
        assert found is not None, self.log.read_text(encoding="utf-8")
        self.url = found[0]

    def audit(self) -> dict[str, float]:
        """Have the engine check itself and empty its prefix cache; returns what it counts."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self._line()
        assert line, self.log.read_text(encoding="utf-8")
        return json.loads(line)

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> int:
        """End it as a service manager does; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdin is not None and self.process.stdout is not None
        status = self.process.wait(timeout=60)
        self.process.stdin.close()
        self.process.stdout.close()
        return status

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture
def storm_server(tmp_path) -> Iterator[StormServer]:
    if not Path("/proc/self/fd").exists():
        pytest.skip("reads the server's memory and open files from /proc")
    made = StormServer(tmp_path)
    yield made
    assert made.close() == 0


@pytest.mark.exhaustive
def test_five_thousand_requests_leave_nothing_behind_and_memory_flat(storm_server):
    """The engine's own audit holds, all pages are free, and memory after the last thousand is that after the first."""
    before = storm_server.audit()
    where = urlsplit(storm_server.url)
    # Who else is in a step changes roundings, and a near tie of two words goes the other way (docs/numerics.md).
    questions = [one for one in draw_questions(60, seed=2) if is_clear(str(where.hostname), int(where.port or 0), one)]
    expected = expected_alone(storm_server.url, questions)
    statuses: Counter = Counter()
    resident, files = [], []
    for part in range(5):
        storm = rage(storm_server.url, expected, count=1000, clients=48, seed=10 + part)
        statuses += storm.statuses
        wait_for_rest(storm_server.url)
        after = storm_server.audit()
        assert after["pages_free"] == before["pages_free"]
        resident.append(storm_server.resident_bytes())
        files.append(storm_server.open_files())
    assert {status for status in statuses if status >= 500} | faults(storm_server.url) <= {503}, statuses
    assert statuses[429] > 0
    assert statuses[200] > 500  # a busy machine refuses more of them: 861 of 5,000 beside three other test runs
    assert resident[-1] <= 1.05 * resident[0], resident
    assert files[-1] <= files[0] + 2, files
