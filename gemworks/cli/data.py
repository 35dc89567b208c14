"""gemworks data: from raw text to batches. Filter, pack, mix, and see afterwards what a step was made of."""

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gemworks import machine
from gemworks.cli import console
from gemworks.errors import ConfigError

app = typer.Typer(help="Filter, tokenize, pack and mix training text, and see what a training step saw.")

_Processes = Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes. Default: the usable cores.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one object instead of tables.")]
_Broken = Annotated[
    bool, typer.Option("--stop-on-broken", help="Stop at the first broken line, instead of counting and skipping.")
]
_Sources = Annotated[list[str], typer.Argument(help="Files or directories: .jsonl .txt (.gz .xz .zst), .parquet.")]


def filter_(
    sources: _Sources,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new directory, or one to go on with.")],
    rule_sets: Annotated[
        str | None, typer.Option("--rules", metavar="SETS", help="Rule sets, as in gopher,repetition; all for all.")
    ] = None,
    languages: Annotated[str, typer.Option(metavar="CODES", help="Only these languages, as in en,de.")] = "",
    language_field: Annotated[
        bool, typer.Option("--language-field", help='Trust the field "lang" instead of telling the language.')
    ] = False,
    personal: Annotated[
        str, typer.Option(metavar="HOW", help="E-mail, phone, IBAN, card, IP, keys: mask, drop or keep.")
    ] = "mask",
    evaluation: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Evaluation sets, whose text is cut out. May be repeated.")
    ] = None,
    unsafe_terms: Annotated[str, typer.Option(metavar="FILE", help="More unsafe terms, one a line.")] = "",
    duplicates: Annotated[bool, typer.Option("--duplicates/--no-duplicates", help="Drop exact and near ones.")] = True,
    reweigh: Annotated[
        str, typer.Option(metavar="HOW", help="none; density: rare text more often; reference: text like --reference.")
    ] = "none",
    reference: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Good texts, for --reweigh reference. May be repeated.")
    ] = None,
    compress: Annotated[str, typer.Option(metavar="KIND", help="Kept shards: gz, xz, zst or none.")] = "gz",
    processes: _Processes = None,
    stop_on_broken: _Broken = False,
    json: _Json = False,
) -> None:
    """Keep what is worth training on: quality, repetition, duplicates, evaluation sets, personal data. Resumable."""
    from gemworks.data.filtering import FilterOptions, run_filter
    from gemworks.data.rules import DEFAULT_SETS, SETS, check_sets

    sets = DEFAULT_SETS if rule_sets is None else SETS if rule_sets == "all" else check_sets(_list(rule_sets))
    options = FilterOptions(
        sets=sets,
        languages=_list(languages),
        language_field=language_field,
        personal=personal,
        evaluation=tuple(evaluation or ()),
        unsafe_terms=unsafe_terms,
        duplicates=duplicates,
        reweigh=reweigh,
        reference=tuple(reference or ()),
        compress=compress,
        stop_on_broken=stop_on_broken,
    )
    with console.loading("examining") as progress:
        staged = None if progress is None else _staged(progress)
        report = run_filter(sources, out, options, processes=_processes(processes), progress=staged)
    _show_report(out, report, json)


def report(
    folder: Annotated[Path, typer.Argument(help="A directory made by: gemworks data filter.")],
    open_: Annotated[bool, typer.Option("--open", help="Open report.html in the browser, too.")] = False,
    json: _Json = False,
) -> None:
    """Show again what a filter run kept and dropped."""
    from gemworks.data.filtering import REPORT
    from gemworks.data.writing import read_json

    found = read_json(folder / REPORT, "the report of: gemworks data filter")
    _show_report(folder, found, json)
    if open_:
        webbrowser.open((folder / "report.html").resolve().as_uri())


def pack(
    sources: _Sources,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="A new directory, or one to go on with.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(metavar="DIR", help="A model's name, a directory or a tokenizer.json.")
    ] = "",
    length: Annotated[int, typer.Option(metavar="T", min=2, help="Tokens of a row: the context to train with.")] = 1024,
    by: Annotated[str, typer.Option(metavar="FIELD", help='Field that groups documents, "" for one group.')] = "lang",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another order of the documents.")] = 0,
    reweigh: Annotated[
        bool, typer.Option("--reweigh", help="Use the weights of: gemworks data filter --reweigh.")
    ] = False,
    processes: _Processes = None,
    stop_on_broken: _Broken = False,
    json: _Json = False,
) -> None:
    """Tokenize text and lay it into rows; or add rows of another --length to a packed store. Resumable."""
    from gemworks.data.readers import find_files
    from gemworks.data.tokenizing import PackOptions
    from gemworks.data.tokenizing import pack as run

    if len(sources) == 1 and (Path(sources[0]) / "header.json").is_file():
        return _add_rows(Path(sources[0]), length, seed, out, json)
    if out is None or not tokenizer:
        raise ConfigError("--out DIR and --tokenizer DIR must be given, to pack text.")
    options = PackOptions(
        tokenizer=_tokenizer_path(tokenizer),
        length=length,
        by=by,
        seed=seed,
        reweigh=reweigh,
        stop_on_broken=stop_on_broken,
    )
    with console.loading("tokenizing") as progress:
        done = run(find_files(sources), out, options, processes=_processes(processes), progress=progress)
    if json:
        return console.emit_json({"store": str(out), **vars(done)})
    _note_broken(done.num_broken, done.broken)
    console.columns(
        ("GROUP", "TOKENS"), [(name, f"{tokens:,}") for name, tokens in sorted(done.groups.items())], right=(1,)
    )
    console.line(
        f"Packed {done.documents:,} documents, {done.tokens:,} tokens, into {done.rows:,} rows of {length}, "
        f"{100 * done.fill:.1f} % full: {out}"
    )


def mix(
    stores: Annotated[list[Path], typer.Argument(help="Packed stores.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.json", help="The mixture to write.")],
    weight: Annotated[
        list[str] | None, typer.Option(metavar="GROUP=W", help="Weight of a group or a store. May be repeated.")
    ] = None,
    unimax: Annotated[bool, typer.Option("--unimax", help="Equal shares, small groups at most --max-epochs.")] = False,
    max_epochs: Annotated[float, typer.Option(metavar="N", help="Most times that UniMax repeats a group.")] = 4.0,
    budget: Annotated[float, typer.Option(metavar="TOKENS", help="Tokens of the run. Default: those there are.")] = 0.0,
    length: Annotated[int | None, typer.Option(metavar="T", help="Which rows, where several are laid out.")] = None,
    batch: Annotated[int, typer.Option(metavar="B", min=1, help="Rows of a batch.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another order of the rows.")] = 0,
    json: _Json = False,
) -> None:
    """Say how much of each group a run sees: by weights, by UniMax over languages, or as large as they are."""
    from gemworks.data.mixing import MixOptions, write_mixture

    weights = dict(_weight(text) for text in weight or ())
    options = MixOptions(
        length=length,
        batch_rows=batch,
        seed=seed,
        weights=weights,
        unimax=unimax,
        budget=budget,
        max_epochs=max_epochs,
    )
    source, shares = write_mixture(stores, out, options)
    if json:
        return console.emit_json({"mixture": str(out), "digest": source.digest, "groups": [vars(s) for s in shares]})
    rows = [(s.name, f"{s.tokens:,}", f"{100 * s.share:.2f} %", f"{s.epochs:.2f}") for s in shares]
    console.columns(("GROUP", "TOKENS", "SHARE", "EPOCHS"), rows, right=(1, 2, 3))
    console.line(
        f"Mixed {len(shares)} groups in {out}, batches of {batch} rows of {source.length}: {source.digest[:12]}"
    )


def inspect(
    data: Annotated[Path, typer.Argument(help="A mixture (.json), a packed store, or conversations (.jsonl).")],
    step: Annotated[int, typer.Option(metavar="N", min=0, help="The step, from 0.")] = 0,
    batch: Annotated[int | None, typer.Option(metavar="B", min=1, help="Rows of a batch, if not the file's.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="The run's seed, if not the file's.")] = None,
    length: Annotated[int | None, typer.Option(metavar="T", help="Which rows, where several are laid out.")] = None,
    tokenizer: Annotated[str, typer.Option(metavar="DIR", help="Show the text, too.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Read the stores once and compare with their hashes.")] = False,
    line: Annotated[int, typer.Option(metavar="N", min=1, help="Of conversations: from this line on.")] = 1,
    count: Annotated[int, typer.Option(metavar="N", min=0, help="Of conversations: so many.")] = 3,
    json: _Json = False,
) -> None:
    """Show which documents training step N saw, row by row; or of conversations which tokens are learned."""
    from gemworks.data.batches import PackedSource
    from gemworks.tokenizer import Tokenizer

    if data.is_file() and {".jsonl", ".ndjson"} & set(data.suffixes):
        from gemworks.cli.data_chats import show_chats

        if not tokenizer:
            raise ConfigError("--tokenizer must name a model or a directory, to show what is learned of conversations.")
        return show_chats([data], Tokenizer.load(_tokenizer_path(tokenizer)), line=line, count=count, json=json)
    source = PackedSource.open(data, batch_rows=batch, seed=seed, length=length)
    if check:
        source.check()
    rows = source.describe(step)
    if tokenizer:
        loaded = Tokenizer.load(_tokenizer_path(tokenizer))
        source.require_tokenizer(loaded, tokenizer)
        _add_texts(rows, source.batch(step), loaded)
    if json:
        return console.emit_json({"step": step, "digest": source.digest, "rows": rows})
    console.line(
        f"Step {step} of {data}: {source.batch_rows} rows of {source.length} tokens, digest {source.digest[:12]}"
    )
    for row in rows:
        console.line(f"row {row['row']}   {row['group']}, stored row {row['stored_row']}, epoch {row['epoch']}")
        for piece in row["pieces"]:
            title = " / ".join(str(piece[name]) for name in ("source", "title") if piece.get(name))
            where = f"{Path(piece['file']).name}:{piece['line']}"
            console.line(f"    {piece['positions']:>6} tokens from {piece['first_token']:>7}   {where}   {title}")
            if "text" in piece:
                console.line(f"           {piece['text'][:100]!r}")


def vocabulary(
    sources: _Sources,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where tokenizer.json goes.")],
    size: Annotated[int, typer.Option(metavar="N", min=1, help="Pieces in all.")] = 8192,
    characters: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most characters with a piece; the others become bytes.")
    ] = 4096,
    stop_on_broken: _Broken = False,
    json: _Json = False,
) -> None:
    """Train a tokenizer of Gemma's conventions: byte-fallback BPE, split digits, kept whitespace."""
    from gemworks.data.readers import find_files
    from gemworks.data.vocabulary import texts_of, train_tokenizer
    from gemworks.data.writing import storing

    with storing(out), console.loading("reading") as progress:
        out.mkdir(parents=True, exist_ok=True)
        texts = texts_of(find_files(sources), progress, stop_on_broken=stop_on_broken)
        made = train_tokenizer(texts, size, max_characters=characters)
    made.save(out)
    if json:
        return console.emit_json({"tokenizer": str(out / "tokenizer.json"), "size": made.size})
    console.line(f"Made a tokenizer of {made.size:,} pieces: {out / 'tokenizer.json'}")


app.command("filter", help=filter_.__doc__)(filter_)
app.command("pack", help=pack.__doc__)(pack)
app.command("mix", help=mix.__doc__)(mix)
app.command("report", help=report.__doc__)(report)
app.command("inspect", help=inspect.__doc__)(inspect)
app.command("vocabulary", help=vocabulary.__doc__)(vocabulary)


def _show_report(out: Path, found: dict[str, Any], json: bool) -> None:
    if json:
        return console.emit_json({"out": str(out), **found})
    _note_broken(found["broken"], found["broken_lines"])
    total = max(1, found["documents"])
    rows = [
        (name, f"{row['documents']:,}", f"{100 * row['documents'] / total:.1f} %", console.size(row["bytes"]))
        for name, row in found["rejected"].items()
    ]
    if rows:
        console.columns(("REJECTED FOR", "DOCUMENTS", "SHARE", "TEXT"), rows, right=(1, 2, 3))
    masked = ", ".join(f"{row['times']:,} {name}" for name, row in found["masked"].items())
    if masked:
        console.line(f"Masked {masked}.")
    console.line(
        f"Kept {found['kept']:,} of {found['documents']:,} documents, {console.size(found['kept_bytes'])} of "
        f"{console.size(found['text_bytes'])}: {out / 'report.html'}"
    )


def _note_broken(number: int, lines: list[str]) -> None:
    if number:
        console.warn(f"{number:,} broken lines were skipped, the first: {lines[0]}.")


def _staged(progress: console.ProgressBar) -> Callable[[str, int, int], None]:
    """A bar whose name is the stage."""
    named = {name: progress.named(name) for name in ("examining", "comparing", "writing")}
    return lambda stage, done, total: named[stage](done, total)


def _add_rows(store: Path, length: int, seed: int, out: Path | None, json: bool) -> None:
    from gemworks.data.store import PackedStore, add_rows

    if out is not None:
        raise ConfigError(f"{store}: is a packed store; rows are added to it in place, so --out must be left out.")
    add_rows(store, length, seed)
    table = PackedStore(store).header["rows"][str(length)]
    if json:
        return console.emit_json({"store": str(store), "length": length, **table})
    console.line(f"Laid {table['count']:,} rows of {length}, {100 * table['fill']:.1f} % full, in {store}")


def _add_texts(rows: list[dict[str, Any]], batch: Any, tokenizer: Any) -> None:
    for r, row in enumerate(rows):
        at = 0
        for piece in row["pieces"]:
            ids = batch.ids_BT[r, at : at + piece["positions"]].tolist()
            piece["text"] = tokenizer.decode(ids)
            at += piece["positions"]


def _weight(text: str) -> tuple[str, float]:
    name, found, value = text.rpartition("=")
    try:
        if found and name:
            return name, float(value)
    except ValueError:
        pass
    raise ConfigError(f'--weight must be GROUP=NUMBER, as in de=0.3, got "{text}".')


def _tokenizer_path(name: str) -> str:
    if Path(name).exists():
        return name
    from gemworks.weights import hub

    return str(hub.resolve(name).path)


def _processes(asked: int | None) -> int:
    return asked or machine.processor().usable_cores


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
