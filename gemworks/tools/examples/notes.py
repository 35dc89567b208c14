"""Full-text search over a folder of notes with SQLite's FTS5. The folder is bound by whoever adds the tool.

The index is made in memory for each call, as nothing but /tmp can be written: fine for some thousand notes.
"""

import sqlite3
from pathlib import Path

_SUFFIXES = (".md", ".txt", ".rst", ".org")
_MOST_BYTES = 1 << 20
_MOST_NOTES = 5000


def search_notes(folder: str, words: str, limit: int = 5) -> list[dict[str, str]]:
    """Notes that have all the words, the best first, each with the passage around them.

    Args:
        folder: where the notes are.
        words: what to look for; "quoted words" must stand together.
        limit: how many notes, 1 to 20.
    """
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE notes USING fts5(path UNINDEXED, title, body, tokenize='unicode61')")
    root = Path(folder)
    database.executemany("INSERT INTO notes VALUES (?, ?, ?)", (_note(root, path) for path in _files(root)))
    columns = "path, title, snippet(notes, 2, '', '', ' ... ', 24)"
    query = f"SELECT {columns} FROM notes WHERE notes MATCH ? ORDER BY rank LIMIT ?"
    rows = database.execute(query, (_query(words), max(1, min(limit, 20)))).fetchall()
    return [{"file": path, "title": title, "passage": " ".join(passage.split())} for path, title, passage in rows]


def read_note(folder: str, file: str) -> str:
    """The whole text of one note.

    Args:
        folder: where the notes are.
        file: the note, as search_notes names it.
    """
    root = Path(folder).resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root) or path.suffix not in _SUFFIXES:
        raise ValueError(f"{file} is not a note in this folder")
    return path.read_text(encoding="utf-8", errors="replace")[:_MOST_BYTES]


def _files(root: Path) -> list[Path]:
    found = (path for path in sorted(root.rglob("*")) if path.suffix in _SUFFIXES and path.is_file())
    return [path for path in found if path.stat().st_size <= _MOST_BYTES][:_MOST_NOTES]


def _note(root: Path, path: Path) -> tuple[str, str, str]:
    body = path.read_text(encoding="utf-8", errors="replace")
    first = next((line.lstrip("# ").strip() for line in body.splitlines() if line.strip()), "")
    return str(path.relative_to(root)), first[:200] or path.stem, body


def _query(words: str) -> str:
    """Words as FTS5 wants them, all quoted: AND, NEAR or * typed by someone are words, too."""
    parts = words.split('"')
    terms = [
        term for number, part in enumerate(parts) for term in ([part] if number % 2 else part.split()) if term.strip()
    ]
    if not terms:
        raise ValueError("words to look for must be given")
    return " ".join(f'"{term.strip()}"' for term in terms)
