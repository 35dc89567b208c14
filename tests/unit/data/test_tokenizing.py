import errno
import hashlib
import multiprocessing
import os
import time

import pytest

from gemworks.data import readers, work
from gemworks.data.store import PackedStore
from gemworks.data.tokenizing import PackOptions, pack
from gemworks.data.work import run_in_order
from gemworks.data.writing import appearing, replace_file, storing
from gemworks.errors import CapacityError, ConfigError, StorageError


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def options(tokenizer_dir, **more):
    return PackOptions(tokenizer=str(tokenizer_dir), length=64, **more)


def test_a_store_holds_its_documents(packed, documents):
    store = PackedStore(packed)
    assert store.header["documents"] == len(documents)
    assert store.groups == ["de", "en"]
    assert [store.groups[g] for g in store.group_of] == [document["lang"] for document in documents]
    assert [store.origin(i)["title"] for i in (0, 17, 39)] == ["t0", "t17", "t39"]
    assert store.origin(17)["line"] == 18
    assert sum(store.group_tokens.values()) == store.header["tokens"] == store.ids.size


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_stopped_packing_goes_on_and_gives_the_same_store(
    write, documents, tokenizer_dir, tmp_path, monkeypatch, stop_at
):
    monkeypatch.setattr(readers, "_BATCH_BYTES", 20_000)
    path = write("a.jsonl", documents)
    pack([path], tmp_path / "whole", options(tokenizer_dir))
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack([path], tmp_path / "out", options(tokenizer_dir), progress=stop)
    with open(tmp_path / "out" / "ids.bin", "ab") as file:
        file.write(b"half a batch")
    with open(tmp_path / "out" / "journal.jsonl", "ab") as file:
        file.write(b'{"batches": 9')
    with pytest.raises(ConfigError, match="a stopped run of other options"):
        pack([path], tmp_path / "out", options(tokenizer_dir, seed=9))
    done = []
    pack([path], tmp_path / "out", options(tokenizer_dir), progress=lambda *_: done.append(1))
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "out")
    pack([path], tmp_path / "all", options(tokenizer_dir), progress=lambda *_: done.append(2))
    assert done.count(1) == done.count(2) - stop_at


@pytest.mark.exhaustive
def test_two_processes_pack_what_one_packs(packed, documents, write, tokenizer_dir, tmp_path):
    pack([write("documents.jsonl", documents)], tmp_path / "two", options(tokenizer_dir, seed=5), processes=2)
    one, two = hashes(packed), hashes(tmp_path / "two")
    same = {"ids.bin", "documents.bin", "groups.bin", "weights.bin", "pieces.bin", "ends.bin"}
    assert {name: one[name] for name in same} == {name: two[name] for name in same}


def test_what_cannot_be_packed_is_refused(write, documents, tokenizer_dir, packed, tmp_path):
    path = write("a.jsonl", documents)
    with pytest.raises(ConfigError, match="holds a packed store already"):
        pack([path], packed, options(tokenizer_dir))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="must be a new or empty directory"):
        pack([path], tmp_path / "full", options(tokenizer_dir))
    empty = write("b.jsonl", [])
    with pytest.raises(ConfigError, match="the sources must hold a document, got none"):
        pack([empty], tmp_path / "b", options(tokenizer_dir))
    empty.write_text("{}\n" + path.read_text())
    done = pack([empty], tmp_path / "c", options(tokenizer_dir, by=""))
    assert (done.num_broken, done.documents, list(done.groups)) == (1, 40, ["all"])
    assert done.broken[0].endswith('line 1: the field "text" must be a string, got no such field')
    with pytest.raises(StorageError, match=r"b\.jsonl, line 1: .*\nLeave --stop-on-broken out"):
        pack([empty], tmp_path / "d", options(tokenizer_dir, stop_on_broken=True))
    with pytest.raises(ConfigError, match="at least 2 tokens, got 1"):
        PackOptions(tokenizer="x", length=1)


def test_a_full_disk_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, b"old")
    full = pytest.raises(StorageError, match=r"the disk is full\. What is finished is kept")
    with full, storing(path), appearing(path) as partial:
        partial.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def double(x):
    if x < 0:
        raise ConfigError(f"bad {x}")
    return 2 * x


def die(_):
    os._exit(1)


def test_results_come_in_order_tasks_are_not_read_ahead_and_errors_come_through():
    read = []

    def tasks():
        for i in [*range(40), -1]:
            read.append(i)
            yield i

    results = run_in_order(double, tasks(), processes=2)
    assert next(results) == 0
    assert len(read) <= 6
    assert [next(results) for _ in range(39)] == [2 * i for i in range(1, 40)]
    with pytest.raises(ConfigError, match="bad -1"):
        next(results)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        list(run_in_order(double, [1], processes=0))


def test_a_dead_worker_is_named():
    with pytest.raises(CapacityError, match="a worker process was ended from outside"):
        list(run_in_order(die, [1], processes=2))


def test_an_interrupt_while_the_pool_ends_leaves_no_worker(monkeypatch):
    """Ctrl-C after the last result, while the pool waits for its workers: it used to leave them, and wait at exit."""
    pools = []  # held: a pool that is collected ends its workers

    def interrupted(pool, **_told):
        pools.append(pool)
        raise KeyboardInterrupt

    monkeypatch.setattr(work.ProcessPoolExecutor, "shutdown", interrupted)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(run_in_order(double, [1, 2, 3], processes=2))
    assert pools
    until = time.monotonic() + 20
    while (left := set(multiprocessing.active_children()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left
