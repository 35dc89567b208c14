"""The example tools, each called through a session in the sandbox, and files of tools."""

import datetime
import math
from pathlib import Path

import pytest
from system.tools.attack_fixtures import why_not

from gemworks.errors import ConfigError
from gemworks.tools import Access, Policy, Toolbox, allow
from gemworks.tools.examples import calculator, calendar, code, notes

ICS = """BEGIN:VCALENDAR
BEGIN:VEVENT
SUMMARY:Dentist\\, finally
LOCATION:Main
  street
DTSTART;TZID=Europe/Berlin:20261123T090000
DTEND;TZID=Europe/Berlin:20261123T093000
BEGIN:VALARM
DTSTART:19700101
END:VALARM
END:VEVENT
BEGIN:VEVENT
SUMMARY:Class
DTSTART:20261102T180000Z
DURATION:PT1H30M
RRULE:FREQ=WEEKLY;BYDAY=MO,WE;UNTIL=20261202
EXDATE:20261125T180000Z
END:VEVENT
BEGIN:VEVENT
SUMMARY:Holiday
DTSTART;VALUE=DATE:20261124
DTEND;VALUE=DATE:20261126
END:VEVENT
BEGIN:VEVENT
SUMMARY:Rent
DTSTART;VALUE=DATE:20260131
RRULE:FREQ=MONTHLY;COUNT=4
END:VEVENT
BEGIN:VEVENT
SUMMARY:Odd
DTSTART:20261124T120000
RRULE:FREQ=MONTHLY;BYSETPOS=-1;BYDAY=FR
END:VEVENT
END:VCALENDAR
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    if all(why_not(engine) for engine in ("bubblewrap", "namespaces")):
        pytest.skip("no namespaces here")
    folder = tmp_path_factory.mktemp("examples")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "bread.md").write_text("# Bread\n\nFlour, water, salt. Bake the sourdough at 230 degrees.\n")
    (folder / "notes" / "deep" / "tea.txt").write_text("Tea\n\nGreen tea at 80 degrees. AND it stays so.\n")
    (folder / "notes" / "picture.png").write_text("degrees")
    (folder / "my.ics").write_text(ICS)
    for path in (folder, *folder.parents[:2], *folder.rglob("*")):
        path.chmod(0o755)
    box = Toolbox([calculator.calculate, calculator.convert_unit, code.run_python])
    box.add(
        calendar.events, sandbox=Policy(readable=(str(folder / "my.ics"),)), bind={"calendar": str(folder / "my.ics")}
    )
    for tool in (notes.search_notes, notes.read_note):
        box.add(tool, sandbox=Policy(readable=(str(folder / "notes"),)), bind={"folder": str(folder / "notes")})
    return box.session("assistant", Access([allow("*")]))


def test_calculator(session):
    assert session.call("calculate", {"expression": "(3 + 4) * 2 ** 3 - sqrt(16)"}).value == 52
    assert session.call("convert_unit", {"value": 100, "source": "F", "target": "C"}).value == pytest.approx(
        37.777777778
    )
    assert "units: C, K, F, m" in session.call("convert_unit", {"value": 1, "source": "m", "target": "kg"}).text


@pytest.mark.parametrize(
    "text", ["__import__('os')", "9**9**9", "a", "(1).real", "'a'*9", "[1][0]", "sqrt(x=1)", "1 +"]
)
def test_calculator_evaluates_arithmetic_only(text):
    with pytest.raises(ValueError):
        calculator.calculate(text)


def test_calculator_agrees_with_python():
    for text in ("1/3", "-2**2", "7 // 2 % 2", "sin(pi / 6)", "max(1, 2, 3)", "1e3"):
        assert calculator.calculate(text) == eval(text, {**vars(math), "max": max})


def test_calendar(session):
    found = session.call("events", {"start": "2026-11-23", "end": "2026-11-25"}).value
    assert [(one["start"], one["title"]) for one in found] == [
        ("2026-11-23 09:00", "Dentist, finally"),
        ("2026-11-23 18:00", "Class"),
        ("2026-11-24", "Holiday"),
        ("2026-11-24 12:00", "Odd"),
    ]
    assert found[0]["place"] == "Main street"
    assert (found[0]["time_zone"], found[1]["time_zone"], found[1]["end"]) == (
        "Europe/Berlin",
        "UTC",
        "2026-11-23 19:30",
    )
    assert (found[2]["end"], found[3]["repeats"]) == ("2026-11-25", "FREQ=MONTHLY;BYSETPOS=-1;BYDAY=FR")
    last = session.call("events", {"start": "2026-11-30", "end": "2026-12-31", "text": "class"}).value
    assert [one["start"] for one in last] == ["2026-11-30 18:00", "2026-12-02 18:00"]


def test_months_without_the_day_are_left_out(tmp_path):
    (tmp_path / "c.ics").write_text(ICS)
    found = calendar.events(str(tmp_path / "c.ics"), datetime.date(2026, 1, 1), datetime.date(2026, 12, 31), "rent")
    assert [one["start"] for one in found] == ["2026-01-31", "2026-03-31", "2026-05-31", "2026-07-31"]


def test_notes(session):
    found = session.call("search_notes", {"words": "degrees"}).value
    assert sorted(one["file"] for one in found) == ["bread.md", "deep/tea.txt"]
    (best,) = session.call("search_notes", {"words": '"the sourdough" flour'}).value
    assert (best["title"], "sourdough" in best["passage"]) == ("Bread", True)
    assert [one["file"] for one in session.call("search_notes", {"words": "tea AND"}).value] == ["deep/tea.txt"]
    assert session.call("read_note", {"file": "bread.md"}).value.startswith("# Bread")
    assert "is not a note in this folder" in session.call("read_note", {"file": "../../etc/passwd"}).text


def test_code_runner(session):
    told = session.call("run_python", {"code": "import math\nprint('hi')\nmath.factorial(5)"}).value
    assert told == {"printed": "hi\n", "value": "120"}
    assert "ZeroDivisionError" in session.call("run_python", {"code": "1/0"}).value["error"]
    told = session.call("run_python", {"code": "import socket\nsocket.create_connection(('192.0.2.1', 1), 1)"}).value
    assert "PermissionError" in told["error"]


def test_a_file_of_tools_is_read_in_the_sandbox(session, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import datetime, os\n"
        "open('/tmp/was-here', 'w').close()\n"
        "def tomorrow(day: datetime.date) -> datetime.date:\n"
        "    'The day after.'\n"
        "    return day + datetime.timedelta(days=1)\n"
        "def _hidden(): ...\n"
    )
    Path("/tmp/was-here").unlink(missing_ok=True)
    box = Toolbox.from_file(file)
    assert list(box.tools) == ["tomorrow"]
    assert box.session("r", Access([allow("*")])).call("tomorrow", {"day": "2026-12-31"}).value == "2027-01-01"
    assert not Path("/tmp/was-here").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(x): ...", "f: every parameter needs a type hint"),
        ("x = 1", "has no public function"),
        ("def (", "SyntaxError"),
        ("1/0", "ZeroDivisionError: division by zero (line 1)"),
        ("import no_such_package", "No module named 'no_such_package'"),
    ],
)
def test_a_bad_file_of_tools_is_told(session, tmp_path, text, words):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Toolbox.from_file(file)
    assert words in str(caught.value)
