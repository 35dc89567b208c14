"""Events of an .ics file. The file is bound by whoever adds the tool: add(events, bind={"calendar": path}, ...).

Read are VEVENTs with DTSTART, DTEND or DURATION in days and hours, SUMMARY, LOCATION, and RRULE of FREQ DAILY, WEEKLY
(BYDAY too), MONTHLY and YEARLY with INTERVAL, COUNT and UNTIL, and EXDATE. An event with another rule is told once,
with `repeats` naming the rule that was not followed. Times are as written: TZID is told, not converted.
"""

import re
from datetime import date, datetime, timedelta
from pathlib import Path

_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_RULE_PARTS = {"FREQ", "INTERVAL", "COUNT", "UNTIL", "BYDAY", "WKST"}
_MOST_REPEATS = 10_000


def events(calendar: str, start: date, end: date, text: str = "") -> list[dict[str, str]]:
    """Events of the calendar between two days, both included, the earliest first.

    Args:
        calendar: the .ics file.
        start: first day, as 2026-11-21.
        end: last day.
        text: only events whose title or place has these words.
    """
    found = []
    for event in _read(Path(calendar).read_text(encoding="utf-8")):
        shown = f"{event.get('SUMMARY', '')} {event.get('LOCATION', '')}"
        if text.lower() not in shown.lower():
            continue
        begin = _moment(event["DTSTART"])
        length = _length(event, begin)
        starts, repeats = _starts(event, begin, end)
        skipped = {_moment(part) for part in event.get("EXDATE", "").split(",") if part}
        for moment in starts:
            if moment not in skipped and moment.date() <= end and (moment + length).date() >= start:
                found.append(_told(event, moment, length, repeats))
    return sorted(found, key=lambda one: one["start"])


def _read(text: str) -> list[dict[str, str]]:
    """Property -> value of each event. A line that begins with a space continues the one before (RFC 5545, 3.1)."""
    found: list[dict[str, str]] = []
    current: dict[str, str] | None = None
    inner = 0
    for line in re.sub(r"\r?\n[ \t]", "", text).splitlines():
        name, _, value = line.partition(":")
        key, _, parameters = name.partition(";")
        key = key.upper()
        if key == "BEGIN":
            if value.upper() == "VEVENT":
                current, inner = {}, 0
            elif current is not None:  # an alarm inside an event has properties of its own
                inner += 1
        elif key == "END":
            if value.upper() == "VEVENT" and current is not None:
                found += [current] if "DTSTART" in current else []
                current = None
            else:
                inner -= 1
        elif current is not None and inner == 0:
            current[key] = f"{current[key]},{value}" if key == "EXDATE" and key in current else value
            if key == "DTSTART" and "TZID=" in parameters:
                current["TZID"] = parameters.split("TZID=")[1].split(";")[0]
    return found


def _moment(text: str) -> datetime:
    text = text.strip().rstrip("Z")
    return datetime.strptime(text, "%Y%m%dT%H%M%S" if "T" in text else "%Y%m%d")


def _length(event: dict[str, str], begin: datetime) -> timedelta:
    """How long an event lasts; a whole-day event's DTEND is the day after."""
    whole_days = "T" not in event["DTSTART"]
    if "DTEND" in event:
        length = _moment(event["DTEND"]) - begin
    elif match := re.fullmatch(
        r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", event.get("DURATION", "")
    ):
        weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        length = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    else:
        length = timedelta(days=1 if whole_days else 0)
    return length - timedelta(seconds=1) if whole_days and length else length


def _starts(event: dict[str, str], begin: datetime, end: date) -> tuple[list[datetime], str]:
    """(when it starts, up to `end`; the rule where it could not be followed)."""
    rule = event.get("RRULE", "")
    if not rule:
        return [begin], ""
    parts = dict(part.split("=", 1) for part in rule.upper().split(";") if "=" in part)
    days = [part for part in parts.get("BYDAY", "").split(",") if part]
    weekly = parts.get("FREQ") == "WEEKLY"
    if set(parts) - _RULE_PARTS or (days and not (weekly and set(days) <= set(_DAYS))):
        return [begin], rule
    count, until = int(parts.get("COUNT", _MOST_REPEATS)), parts.get("UNTIL")
    last = min(datetime.combine(end, datetime.max.time()), _until(until) if until else datetime.max)
    found = []
    for moment in _steps(begin, parts.get("FREQ", ""), int(parts.get("INTERVAL", 1)), days):
        if moment > last or len(found) >= min(count, _MOST_REPEATS):
            break
        found.append(moment)
    return found, ""


def _until(text: str) -> datetime:
    moment = _moment(text)
    return moment if "T" in text else datetime.combine(moment.date(), datetime.max.time())


def _steps(begin: datetime, frequency: str, interval: int, days: list[str]):
    """The moments of a rule without its end. A day that a month lacks (the 31st) is left out, as the standard says."""
    if frequency == "WEEKLY" and days:
        monday = begin - timedelta(days=begin.weekday())
        offsets = sorted(_DAYS.index(day) for day in days)
        for week in range(0, _MOST_REPEATS, interval):
            for offset in offsets:
                moment = monday + timedelta(weeks=week, days=offset)
                if moment >= begin:
                    yield moment
    for number in range(_MOST_REPEATS):
        step = number * interval
        if frequency in ("DAILY", "WEEKLY"):
            yield begin + timedelta(days=step * (7 if frequency == "WEEKLY" else 1))
            continue
        months = begin.month - 1 + step * (12 if frequency == "YEARLY" else 1)
        try:
            yield begin.replace(year=begin.year + months // 12, month=months % 12 + 1)
        except ValueError:
            if begin.year + months // 12 > 9999:
                return


def _told(event: dict[str, str], moment: datetime, length: timedelta, repeats: str) -> dict[str, str]:
    whole_days = "T" not in event["DTSTART"]
    form = "%Y-%m-%d" if whole_days else "%Y-%m-%d %H:%M"
    told = {"start": moment.strftime(form), "end": (moment + length).strftime(form)}
    told["title"] = _plain(event.get("SUMMARY", ""))
    extra = {"place": _plain(event.get("LOCATION", "")), "time_zone": event.get("TZID", ""), "repeats": repeats}
    if event["DTSTART"].strip().endswith("Z"):
        extra["time_zone"] = "UTC"
    return told | {name: value for name, value in extra.items() if value}


def _plain(text: str) -> str:
    """A text value without the escapes of RFC 5545, 3.3.11."""
    return re.sub(r"\\([\\;,nN])", lambda match: "\n" if match[1] in "nN" else match[1], text)
