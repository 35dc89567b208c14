import re
from collections import Counter

import numpy as np
import pytest

from gemworks.data.batches import PackedSource, prefetched
from gemworks.data.mixing import MixOptions, write_mixture
from gemworks.data.store import PackedStore, add_rows
from gemworks.errors import ConfigError, StorageError
from gemworks.tokenizer import Tokenizer


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_batch_is_the_documents_it_says(packed, documents, tokenizer_dir):
    """Every piece decodes to the stretch of the document that `describe` names; targets are the next tokens."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    source = PackedSource.open(packed, batch_rows=4)
    described = {step: source.describe(step) for step in range(len(source))}
    many = next(step for step, rows in described.items() if any(len(row["pieces"]) > 1 for row in rows))
    short = next(s for s, rows in described.items() if any(sum(p["positions"] for p in r["pieces"]) < 64 for r in rows))
    for step in (0, 3, 57, many, short):
        batch = source.batch(step)
        for r, row in enumerate(source.describe(step)):
            at = 0
            for index, piece in enumerate(row["pieces"], 1):
                n, first = piece["positions"], piece["first_token"]
                whole = documents[piece["line"] - 1]
                ids = [tokenizer.bos_id, *tokenizer.encode(whole["text"]), tokenizer.eos_id]
                assert piece["title"] == whole["title"] and row["group"] == whole["lang"]
                assert batch.ids_BT[r, at : at + n].tolist() == ids[first : first + n]
                assert batch.targets_BT[r, at : at + n].tolist() == ids[first + 1 : first + n + 1]
                assert (batch.segment_BT[r, at : at + n] == index).all()
                assert batch.position_BT[r, at : at + n].tolist() == list(range(n))
                at += n
            assert batch.loss_mask_BT[r].tolist() == [True] * at + [False] * (64 - at)
            assert not batch.ids_BT[r, at:].any()
            assert not batch.segment_BT[r, at:].any()


def test_an_epoch_sees_every_row_once(packed):
    source = PackedSource.open(packed, batch_rows=1)
    orders = []
    for epoch in (0, 1):
        seen = Counter()
        for step in range(epoch * source.num_rows, (epoch + 1) * source.num_rows):
            for row in source.describe(step):
                seen[row["group"], row["stored_row"]] += 1
        # Groups are drawn by their sizes; an epoch of one may end a row before the other's.
        assert len(seen) >= source.num_rows - 2
        assert max(seen.values()) <= 2
        orders.append([row for group, row in seen if group == "en"][:20])
    assert orders[0] != orders[1], "an epoch has an order of its own"


def test_a_step_does_not_depend_on_what_came_before_or_on_who_asks(packed):
    source = PackedSource.open(packed, batch_rows=4)
    whole = source.batch(11)
    assert same(whole, PackedSource.open(packed, batch_rows=4).batch(11))
    parts = [source.batch(11, slice(0, 1)), source.batch(11, slice(1, 4))]
    for name in vars(whole):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert source.describe(11)[1:] == source.describe(11, slice(1, 4))
    assert not same(whole, PackedSource.open(packed, batch_rows=4, seed=99).batch(11))


def test_rows_are_the_same_whatever_the_batch_size(packed):
    eight, two = PackedSource.open(packed, batch_rows=8), PackedSource.open(packed, batch_rows=2)
    assert np.array_equal(eight.batch(1).ids_BT, np.concatenate([two.batch(i).ids_BT for i in range(4, 8)]))
    assert eight.digest != two.digest


def test_prefetched_batches_are_those_of_the_steps_and_errors_come_through(packed):
    source = PackedSource.open(packed, batch_rows=2)
    found = list(prefetched(source, 5, 12))
    assert len(found) == 7
    assert all(same(batch, source.batch(5 + i)) for i, batch in enumerate(found))
    with pytest.raises(ConfigError, match="at least 0"):
        list(prefetched(source, -1, 2))


def test_a_mixture_draws_by_its_weights(packed, tmp_path):
    source, shares = write_mixture([packed], tmp_path / "m.json", MixOptions(weights={"en": 3, "de": 1}, batch_rows=4))
    assert {s.name.partition("/")[2]: s.share for s in shares} == pytest.approx({"en": 0.75, "de": 0.25})
    seen = Counter(row["group"] for step in range(100) for row in source.describe(step))
    assert seen == {"store/en": 300, "store/de": 100}
    assert PackedSource.open(tmp_path / "m.json").digest == source.digest


def test_unimax_of_a_mixture_is_told_in_epochs(packed, tmp_path):
    _, shares = write_mixture([packed], tmp_path / "m.json", MixOptions(unimax=True, max_epochs=1.0))
    assert [s.epochs for s in shares] == pytest.approx([1.0, 1.0])


def test_mixtures_that_cannot_be_are_refused(packed, tmp_path):
    with pytest.raises(ConfigError, match=r'no group "fr" in the stores\. There are: store/de, store/en|store/en'):
        write_mixture([packed], tmp_path / "m.json", MixOptions(weights={"fr": 1}))
    with pytest.raises(ConfigError, match="exclude each other"):
        write_mixture([packed], tmp_path / "m.json", MixOptions(weights={"en": 1}, unimax=True))
    with pytest.raises(ConfigError, match=r"must be a \.json file"):
        write_mixture([packed], tmp_path / "m.txt", MixOptions())
    assert not (tmp_path / "m.json").exists()


def test_another_length_is_added_without_tokenizing_again(packed, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    with pytest.raises(ConfigError, match="rows of 128 tokens are not laid out, only of 64"):
        PackedSource.open(copy, length=128)
    add_rows(copy, 128, seed=5)
    with pytest.raises(ConfigError, match="length must say which rows"):
        PackedSource.open(copy)
    long = PackedSource.open(copy, length=128, batch_rows=1)
    total = {size: int(PackedStore(copy).rows(size).pieces["length"].sum()) for size in (64, 128)}
    assert total[64] == total[128]
    assert long.batch(0).ids_BT.shape == (1, 128)
    assert PackedSource.open(copy, length=64).digest == PackedSource.open(packed).digest


def test_weights_change_how_often_a_document_is_laid(packed, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    weights = np.fromfile(copy / "weights.bin", "<f4")
    weights[:] = 0
    weights[3], weights[5] = 2.0, 1.0
    weights.tofile(copy / "weights.bin")
    add_rows(copy, 32, seed=0)
    pieces = PackedStore(copy).rows(32).pieces
    sizes = np.diff(PackedStore(copy).starts) - 1
    laid = np.bincount(pieces["document"], weights=pieces["length"], minlength=40)
    assert laid.tolist() == [2 * sizes[3] if i == 3 else sizes[5] if i == 5 else 0 for i in range(40)]


def test_another_tokenizer_is_refused(packed, tokenizer_dir, tmp_path):
    source = PackedSource.open(packed)
    source.require_tokenizer(Tokenizer.load(tokenizer_dir), "here")
    text = (tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(re.sub(r'"Q"(\s*:)', '"\u00c4"\\1', text), encoding="utf-8")
    with pytest.raises(ConfigError, match="there: the tokenizer must be the one that the data was packed with"):
        source.require_tokenizer(Tokenizer.load(tmp_path), "there")


def test_a_damaged_store_is_refused_and_a_changed_byte_is_found(packed, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    PackedStore(copy).check()
    data = bytearray((copy / "ids.bin").read_bytes())
    data[100] ^= 1
    (copy / "ids.bin").write_bytes(data)
    with pytest.raises(StorageError, match=r"ids\.bin: must have sha256"):
        PackedStore(copy).check()
    (copy / "ids.bin").write_bytes(data[:-2])
    with pytest.raises(StorageError, match=r"ids\.bin: must have [\d,]+ bytes, got"):
        PackedStore(copy)
    (copy / "header.json").write_text("{}")
    with pytest.raises(StorageError, match="must be a packed store"):
        PackedSource.open(copy)
    with pytest.raises(StorageError, match="no such file"):
        PackedSource.open(tmp_path / "none.json")
