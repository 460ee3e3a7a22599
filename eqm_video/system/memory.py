"""Errors that mean that memory ran out: how they are known, and the sentence about them."""

from __future__ import annotations

from eqm_video.errors import cut


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's and numpy's MemoryError, or torch's on a CPU or a GPU."""
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    text = str(error)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "out of memory" in text


def out_of_memory(error: BaseException, advice: str) -> str:
    """The sentence about such an error: its first line, then `advice`, the things that need less memory."""
    first = cut(str(error).strip().partition("\n")[0], 200)
    return f"out of memory: {first}; {advice}" if first else f"out of memory; {advice}"
