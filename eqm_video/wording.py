"""Wording of messages: counts with their nouns, sizes of files, and times."""

from __future__ import annotations

DAY = 24 * 3600.0  # seconds
YEAR = 365 * DAY


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 clip`, `2 clips`, `2 processes`, `2 batches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def storage(size: int) -> str:
    """A number of bytes: `900 bytes`, `3.1 kB`, `0.3 MB`, `40.12 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" if size >= 1e3 else f"{size} bytes"


def duration(seconds: float) -> str:
    """A time in words, in two units at most: `40 s`, `7 min`, `3 h 20 min`, `2 days 5 h`, `17 days`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    days, hours = divmod(round(minutes / 60), 24)
    if days >= 10:
        return f"{round(seconds / DAY):,} days"
    return " ".join([counted(days, "day"), *([f"{hours} h"] if hours else [])])


def pace(seconds: float) -> str:
    """The time of a step in words, to two digits: `0.012 s`, `9.5 s`, `40 s`, `7 min`, `more than a year`."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds) if seconds < YEAR else about(seconds)


def about(seconds: float) -> str:
    """A time that is estimated, in words: `about 3 h 20 min`; beyond a year its number would say nothing."""
    return f"about {duration(seconds)}" if seconds < YEAR else "more than a year"
