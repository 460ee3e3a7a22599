"""Warps: how the steps of a descent are spread over gamma, from noise (0) to data (1).

A warp is a curve gamma(s), s from 0 (start) to 1 (end). A frame at gamma with `left` steps to go takes an equal share
of the rest of s, so that its last step ends at gamma = 1 wherever it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Warp(Protocol):
    """The spread of steps over gamma."""

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """Gamma after the next step of frames that stand at `gamma` and have `left` >= 1 steps to go, this one too.

        All are float tensors of one shape; the result is 1 where left is 1.
        """


@dataclass(frozen=True)
class Identity:
    """Steps of equal gamma."""

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """gamma + (1 - gamma) / left."""
        return gamma + (1 - gamma) / left
