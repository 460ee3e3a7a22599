"""Wording of messages: counts with their nouns, sizes of files, and times."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 clip`, `2 clips`, `2 processes`, `2 batches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def storage(size: int) -> str:
    """A number of bytes: `900 bytes`, `3.1 kB`, `0.3 MB`, `40.12 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" if size >= 1e3 else f"{size} bytes"


def duration(seconds: float) -> str:
    """A time in words, in two units at most: `40 s`, `7 min`, `3 h 20 min`, `2 d 5 h`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
