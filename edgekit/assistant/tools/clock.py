"""Date, time, weekday and the difference between time zones, which a model cannot know."""

from __future__ import annotations

import datetime
import difflib
import zoneinfo
from typing import Any

from edgekit.assistant.tools.definitions import ToolInfo, ToolResult

CLOCK = ToolInfo(
    name="clock",
    server="",
    tool="clock",
    description=(
        "The current date, time, weekday and time zone of this computer. With time_zone: the time "
        "there and the difference from here (or from compare_with). With date: its weekday and how "
        "many days it is from today."
    ),
    schema={
        "type": "object",
        "properties": {
            "time_zone": {"type": "string", "description": "such as Asia/Shanghai or Berlin"},
            "compare_with": {"type": "string", "description": "another time zone"},
            "date": {"type": "string", "description": "a date as YYYY-MM-DD"},
        },
        "additionalProperties": False,
    },
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def tell_time(now: datetime.datetime, arguments: dict[str, Any]) -> ToolResult:
    """Answer the tool ``clock``; ``now`` is aware, in the zone of this computer."""
    lines = []
    try:
        zone, other = arguments.get("time_zone"), arguments.get("compare_with")
        here = now.astimezone(_zone(other)) if other else now
        lines.append(_line(other or "here", here))
        if zone:
            there = now.astimezone(_zone(zone))
            lines += [_line(zone, there), _difference(zone, there, other or "here", here)]
        if arguments.get("date"):
            lines.append(_day(arguments["date"], now.date()))
    except ValueError as error:
        return ToolResult(str(error), is_error=True)
    return ToolResult("\n".join(lines))


def _line(place: str, moment: datetime.datetime) -> str:
    offset = moment.strftime("%z")
    named = f"{moment.tzname()}, " if moment.tzname() else ""
    return (
        f"{place}: {moment:%Y-%m-%d %H:%M:%S}, {DAYS[moment.weekday()]} "
        f"({named}UTC{offset[:3]}:{offset[3:5]})"
    )


def _difference(zone: str, there: datetime.datetime, other: str, here: datetime.datetime) -> str:
    minutes = int(
        ((there.utcoffset() or _ZERO) - (here.utcoffset() or _ZERO)).total_seconds() // 60
    )
    if minutes == 0:
        return f"{zone} has the same time as {other}"
    hours, rest = divmod(abs(minutes), 60)
    amount = f"{hours} h" + (f" {rest} min" if rest else "")
    return f"{zone} is {amount} {'ahead of' if minutes > 0 else 'behind'} {other}"


_ZERO = datetime.timedelta()


def _day(text: str, today: datetime.date) -> str:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text[:40]!r} is not a date; write YYYY-MM-DD") from error
    days = (day - today).days
    when = "today" if days == 0 else f"in {days} days" if days > 0 else f"{-days} days ago"
    return f"{day.isoformat()}: {DAYS[day.weekday()]}, {when}"


def _zone(name: str) -> zoneinfo.ZoneInfo:
    """A zone by its name in the database, or by a city that has one.

    Raises:
        ValueError: there is none, with the names that come close.
    """
    known = zoneinfo.available_timezones()
    wanted = name.strip().replace(" ", "_")
    by_lower = {zone.lower(): zone for zone in sorted(known)}
    cities = {zone.rpartition("/")[2].lower(): zone for zone in sorted(known) if "/" in zone}
    found = by_lower.get(wanted.lower()) or cities.get(wanted.lower())
    if found is not None:
        return zoneinfo.ZoneInfo(found)
    close = difflib.get_close_matches(wanted.rpartition("/")[2].lower(), cities, n=3)
    hint = f"; did you mean {', '.join(cities[c] for c in close)}?" if close else ""
    raise ValueError(f"{name[:60]!r} is not a time zone{hint}")
