"""The log tells when it was changed: every change of every record, cut ends, crashes, several writers."""

import json
import multiprocessing
import threading

import pytest

from gemworks.errors import StorageError
from gemworks.tools.audit import AuditLog, Head


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(4):
        log.record(who="user", tool=f"t{number}", arguments="0" * 64, verdict="ok")
    return log


def test_a_sound_log_is_sound(log):
    report = log.verify()
    assert (report.num_records, report.problems) == (4, ())
    record = json.loads(log.path.read_text().splitlines()[0])
    assert set(record) == {"seq", "time", "previous", "hash", "who", "tool", "arguments", "verdict"}
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_every_changed_byte_is_found(log):
    data = log.path.read_bytes()
    for place in range(0, len(data), 7):
        log.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not log.verify().is_sound, place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], "the head file tells of 4 records, the log ends with 3"),
        (lambda lines: lines[:1] + lines[2:], "record 2 does not follow"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "record 1 does not follow"),
        (lambda lines: [*lines, lines[-1]], "record 5 does not follow"),
        (lambda lines: [], "tells of 4 records"),
        (lambda lines: [lines[0].replace(b'"ok"', b'"no"'), *lines[1:]], "record 1 was changed"),
        (lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]], "record 1 was written by something else"),
        (lambda lines: [*lines[:-1], lines[-1][:-20]], "record 4 is not whole"),
    ],
)
def test_tampering_is_named(log, change, words):
    log.path.write_bytes(b"".join(change(log.path.read_bytes().splitlines(keepends=True))))
    assert any(words in problem for problem in log.verify().problems)


def test_a_cut_log_is_not_continued(log):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StorageError, match="bytes are missing at the end; the log was cut"):
        log.record(tool="next")
    log._head_path.unlink()  # nor with the head taken away, too
    with pytest.raises(StorageError, match="the log has others behind them"):
        log.record(tool="next")


def test_put_back_to_an_earlier_state_is_found_with_a_known_head(log):
    earlier = log.path.read_bytes(), log._head_path.read_bytes()
    log.record(tool="later")
    known = log.head()
    assert log.verify(known).is_sound
    log.path.write_bytes(earlier[0])
    log._head_path.write_bytes(earlier[1])
    assert log.verify().is_sound  # said in the module's docstring
    assert log.verify(known).problems == ("record 5 is not the one that was known, or is missing",)


def test_a_log_rewritten_whole_is_found_with_a_key(tmp_path):
    log = AuditLog(tmp_path / "a", key=b"secret")
    log.record(tool="bad")
    for path in (log.path, log._head_path):
        path.unlink()
    AuditLog(tmp_path / "a").record(tool="good")
    assert log.verify().problems == ("record 1 was changed, or the key is another",)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_crash_while_writing_loses_no_record(log, cut):
    """The part of a record that no call has relied on goes; what was told as written stays."""
    before = log.path.read_bytes()
    log.path.write_bytes(before + before.splitlines(keepends=True)[-1][:cut])
    log.record(tool="next")
    assert log.verify().is_sound
    assert log.head().seq == 5
    assert log.path.read_bytes().startswith(before)


def test_a_crash_between_log_and_head_keeps_the_record(log):
    head = log._head_path.read_bytes()
    log.record(tool="fifth")
    log._head_path.write_bytes(head)
    log.record(tool="sixth")
    assert (log.verify().num_records, log.verify().is_sound) == (6, True)


def _write(path, count):
    log = AuditLog(path)
    for number in range(count):
        log.record(tool=str(number))


def test_processes_and_threads_write_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(path, 10)) for _ in range(2)]
    threads = [threading.Thread(target=_write, args=(path, 10)) for _ in range(2)]
    for one in (*workers, *threads):
        one.start()
    for one in (*workers, *threads):
        one.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (AuditLog(path).verify().num_records, AuditLog(path).verify().problems) == (40, ())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the audit log cannot be written"):
        AuditLog(tmp_path / "file" / "audit").record(tool="x")


def test_an_empty_log_is_sound(tmp_path):
    log = AuditLog(tmp_path / "none")
    assert log.head() == Head()
    assert log.verify().is_sound
