"""The protocol of a gradient field: the methods that samplers, guidance and studies call on the gradient they follow.

Legend: B clips, T frames, C channels, H W height and width, b selected clips.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sight:
    """The part of an evaluation that tells how far frames are from data, for a closed loop.

    plain: (B, T, C, H, W), the gradient without guidance, whose size is known.
    level, spread: (B, T), gamma of each frame as a learned readout gives it, and its standard deviation; None without.
    """

    plain: Tensor
    level: Tensor | None = None
    spread: Tensor | None = None


class GradientField:
    """A gradient of latents that points from data to noise, and can be restricted to clips, steps and gammas.

    Derive from it and write `__call__`, or `observed` where the gradient is not that of training. Every other method
    has a default, for a field that depends on latents alone: override `select` if the field keeps tensors with a row
    for each clip, `at_gamma` and `tell` if it depends on gamma, `at_progress` and `settled` if it changes along the
    descent, `at_step` if it depends on the number of steps, `forwards` if it calls a network, and `for_descent` if it
    holds a field that does. Samplers also accept a plain callable, which has none of these methods.
    """

    def __call__(self, latents: Tensor) -> Tensor:
        """The gradient at latents (B, T, C, H, W), of the same shape; by default that of `observed`."""
        if type(self).observed is GradientField.observed:
            raise NotImplementedError(f"{type(self).__name__} has no gradient: write its __call__")
        return self.observed(latents)[0]

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The gradient at latents, of the same shape, and what the same evaluation says of the frames' levels.

        Override it where the gradient is not that of training, as under guidance.
        """
        gradient = self(latents)
        return gradient, Sight(gradient)

    @property
    def forwards(self) -> int:
        """Network calls so far, of this field and of every copy made from it; 0 for a field without a network."""
        return 0

    @property
    def settled(self) -> bool:
        """Whether the field is the same in the whole descent."""
        return True

    def select(self, indices: Tensor) -> GradientField:
        """The field of the clips at `indices` (b,), integers. The loop calls it when clips stop and leave the batch."""
        return self

    def for_descent(self) -> GradientField:
        """The field for a single descent, in which no weight changes: it may keep what depends on labels alone."""
        return self

    def at_progress(self, progress: float) -> GradientField:
        """The field at a point of the descent, 0 (start) to 1 (end)."""
        return self

    def at_step(self, step: int) -> GradientField:
        """The field at a step of a rule's descent, counted from 0."""
        return self

    def at_gamma(self, gamma: float | Tensor) -> GradientField:
        """The field at a solver's time, both gamma and progress: a number, or (B, T) with 1 on known frames."""
        return self

    def tell(self, gamma: float | Tensor) -> GradientField:
        """The field with its network conditioned on `gamma`: a number for all frames, or (B, T).

        Raises:
            TypeError: the field does not take a gamma.
        """
        raise TypeError(f"{type(self).__name__} does not take a gamma for its network")

    def energies(self, latents: Tensor, energy: str | None = None) -> Tensor:
        """Energy of each frame (B, T): "dot" or "l2", or None for the network's own.

        Raises:
            TypeError: the field has no energy.
        """
        raise TypeError(f"{type(self).__name__} has no energy")

    def changed(self, **values: Any) -> Any:
        """A copy of this field with other values of attributes."""
        other = copy(self)
        vars(other).update(values)
        return other


class FieldAround(GradientField):
    """A field made of another one, `field`, whose network calls it counts. Derive from it and write `observed`."""

    field: GradientField

    @property
    def forwards(self) -> int:
        """Network calls so far."""
        return self.field.forwards

    @property
    def settled(self) -> bool:
        """Whether the inner field is the same in the whole descent."""
        return self.field.settled

    def at_progress(self, progress: float) -> GradientField:
        """The field at a point of the descent, 0 (start) to 1 (end)."""
        return self.changed(field=self.field.at_progress(progress))

    def for_descent(self) -> GradientField:
        """The field for a single descent."""
        return self.changed(field=for_descent(self.field))


def observe(gradient: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, Sight]:
    """The gradient at latents, and its `Sight`. A plain callable, without a method `observed`, is its own sight."""
    if hasattr(gradient, "observed"):
        return gradient.observed(latents)
    slope = gradient(latents)
    return slope, Sight(slope)


def for_descent(gradient: Callable[[Tensor], Tensor]) -> Any:
    """The gradient for a single descent. A plain callable, without a method `for_descent`, stays as it is."""
    return gradient.for_descent() if hasattr(gradient, "for_descent") else gradient
