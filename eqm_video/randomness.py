"""Random numbers that depend on a seed, names and indices alone, never on the batch or the number of processes.

Legend: B clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from eqm_video.system.devices import send


def fold(*parts: int | str) -> int:
    """Hash integers and strings to a seed in [0, 2^63), the same on every machine and in every process.

    The order and the type of the parts count: `fold(1, 2)`, `fold(2, 1)`, `fold(12)` and `fold("1", 2)` all differ.

    Raises:
        ValueError: no parts, or a part that is neither an int nor a str.
    """
    if not parts:
        raise ValueError("fold needs at least one part to hash; give for instance fold(seed, step, sample)")
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise ValueError(f"fold takes ints and strs, got {part!r} ({type(part).__name__}); convert it with int()")
        text = str(part).encode()
        digest.update(f"{'s' if isinstance(part, str) else 'i'}{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator seeded by `fold(*parts)`. A generator for each sample makes samples independent of their batch.

    A CPU generator gives the same numbers on every machine. For noise that does not depend on the device, draw on the
    CPU and move the result, as `normal` does.
    """
    return torch.Generator(device=device).manual_seed(fold(*parts))


def normal(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise (B, *shape): row k comes from `generators[k]` alone, whatever B is.

    Drawn in float32 on each generator's own device, then moved and cast, so that the numbers depend neither on
    `device` nor on `dtype`.

    Raises:
        ValueError: no generators.
    """
    if len(generators) == 0:
        raise ValueError("normal needs one generator for each sample, got none; give [generator(seed, k) for k in ...]")
    # Each row is drawn in its place: a kernel for each sample, no copy, and a single one to the device.
    rows = torch.empty(len(generators), *shape, device=generators[0].device, dtype=torch.float32)
    for row, draw in zip(rows.unbind(), generators, strict=True):
        if draw.device == row.device:
            row.normal_(generator=draw)
        else:
            row.copy_(torch.randn(tuple(shape), generator=draw, device=draw.device, dtype=torch.float32))
    return send(rows, device).to(dtype)
