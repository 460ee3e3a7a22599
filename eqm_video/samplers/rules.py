"""Update rules of the descent x <- x - step_size * f: a rule says where to evaluate the field and how to step.

Legend: B clips. Every tensor of a rule's state has the batch first, so that the loop can let stopped clips go.
A rule is a frozen dataclass with three methods; stopping, known frames and counting belong to the loop (descent.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class Rule(Protocol):
    """What the loop needs of a rule; `generators` (one for each clip, or None) is for rules with randomness."""

    def start(self, latents: Tensor) -> State:
        """The state before the first update: tensors (B, ...)."""

    def point(self, latents: Tensor, state: State) -> Tensor:
        """Where the gradient is to be evaluated, of the latents' shape."""

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """New latents and state; the inputs are left as they are."""


def _check_step_size(rule: object, step_size: object) -> None:
    is_number = isinstance(step_size, (int, float)) and not isinstance(step_size, bool)
    if not is_number or not math.isfinite(step_size) or step_size <= 0:
        raise ValueError(f"{type(rule).__name__}: step_size is {step_size!r}; it must be a finite number above 0")


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent, x <- x - step_size * f(x) (arXiv 2510.02300, section 3.3)."""

    step_size: float = 0.003  # eta

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)

    def start(self, latents: Tensor) -> State:
        """No state."""
        return {}

    def point(self, latents: Tensor, state: State) -> Tensor:
        """At the latents themselves."""
        return latents

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """One step down the gradient."""
        return latents - self.step_size * gradient, state


@dataclass(frozen=True)
class NAG:
    """Nesterov look-ahead, x_{k+1} = x_k - step_size * f(x_k + mu * (x_k - x_{k-1})) (arXiv 2510.02300, section 3.3).

    The look-ahead is the last displacement, not an accumulated velocity; mu = 0 is gradient descent.
    """

    step_size: float = 0.003  # eta
    mu: float = 0.35  # look-ahead in units of the last displacement, in [0, 1)

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)
        is_number = isinstance(self.mu, (int, float)) and not isinstance(self.mu, bool)
        if not is_number or not 0 <= self.mu < 1:
            raise ValueError(f"NAG: mu is {self.mu!r}; it must be a number in [0, 1), such as 0.35")

    def start(self, latents: Tensor) -> State:
        """No displacement yet."""
        return {"displacement": torch.zeros_like(latents)}

    def point(self, latents: Tensor, state: State) -> Tensor:
        """The latents moved on by mu times their last displacement."""
        return latents + self.mu * state["displacement"]

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """One step from the latents (not from the look-ahead) down the gradient at the look-ahead."""
        displacement = -self.step_size * gradient
        return latents + displacement, {"displacement": displacement}


RULES: dict[str, type] = {"gd": GradientDescent, "nag": NAG}
