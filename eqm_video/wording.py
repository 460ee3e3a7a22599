"""Wording of messages: counts with their nouns, and sizes of files."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 clip`, `2 clips`, `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def storage(size: int) -> str:
    """A number of bytes: `900 bytes`, `3.1 kB`, `0.3 MB`, `40.12 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" if size >= 1e3 else f"{size} bytes"
