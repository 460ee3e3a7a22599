"""Hashes of files and of weights, by which work of two origins is told apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PIECE = 2**22  # bytes that are read at once


def add_file(digest: Any, path: Path) -> Any:
    """Add all bytes of a file to a digest of hashlib, and return it. OSError where the file cannot be read."""
    with path.open("rb") as file:
        while part := file.read(PIECE):
            digest.update(part)
    return digest


def add_weights(digest: Any, weights: Mapping[str, Tensor]) -> Any:
    """Add names and values of weights, sorted by name, to a digest of hashlib, and return it."""
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest
