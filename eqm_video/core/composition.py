"""Fields made of fields: weighted sums over labels or networks, and a field along a descent.

Legend: B clips, T frames, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqm_video.core.field import FieldAround, GradientField, Sight, for_descent
from eqm_video.core.guidance import weighted_sum


class ComposedField(GradientField):
    """A weighted sum of fields of different labels or networks, as a gradient (arXiv 2510.02300, section 4.4).

    The fields are gradients of the same latents, such as `GuidedField`s. Classifier-free guidance is the composition of
    a labelled and an unlabelled field with the weights s and 1 - s. The weights must sum to 1, unless `plain_sum` is
    true (see `weighted_sum`); ValueError otherwise.
    """

    def __init__(self, fields: Sequence[GradientField], weights: Sequence[float], *, plain_sum: bool = False) -> None:
        self.fields = list(fields)
        self.weights = list(weights)
        self.plain_sum = plain_sum
        # Wrong weights are refused here, before any network runs, by the same check as at every evaluation.
        weighted_sum([torch.zeros(()) for _ in self.fields], self.weights, plain_sum=plain_sum)

    @property
    def forwards(self) -> int:
        """Network calls so far, of all fields and of every copy made from them."""
        return sum(field.forwards for field in self.fields)

    def select(self, indices: Tensor) -> ComposedField:
        """The composition of the clips at `indices` (1-D integers)."""
        return self._each(lambda field: field.select(indices))

    def for_descent(self) -> ComposedField:
        """The composition for a single descent."""
        return self._each(for_descent)

    @property
    def settled(self) -> bool:
        """Whether every field of the composition is the same in the whole descent."""
        return all(field.settled for field in self.fields)

    def at_progress(self, progress: float) -> ComposedField:
        """The composition at a point of the descent, 0 to 1."""
        return self._each(lambda field: field.at_progress(progress))

    def at_gamma(self, gamma: float | Tensor) -> ComposedField:
        """The composition at a solver's time."""
        return self._each(lambda field: field.at_gamma(gamma))

    def tell(self, gamma: float | Tensor) -> ComposedField:
        """The composition with every network conditioned on `gamma`: a number, or (B, T)."""
        return self._each(lambda field: field.tell(gamma))

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The weighted sum at latents (B, T, C, H, W), and the fields' plain mean, as long as each of them.

        A plain sum is as many times as long as its weights say, as its decay is.
        """
        gradients, sights = zip(*(field.observed(latents) for field in self.fields), strict=True)
        total = sum(self.weights) if self.plain_sum else 1.0
        mean = sum(sight.plain for sight in sights) * (total / len(sights))
        return weighted_sum(gradients, self.weights, plain_sum=self.plain_sum), Sight(mean)

    def energies(self, latents: Tensor, energy: str | None = None) -> Tensor:
        """The weighted sum of the energies of each frame (B, T)."""
        values = [field.energies(latents, energy) for field in self.fields]
        return weighted_sum(values, self.weights, plain_sum=self.plain_sum)

    def _each(self, change: Callable[[GradientField], GradientField]) -> ComposedField:
        return ComposedField([change(field) for field in self.fields], self.weights, plain_sum=self.plain_sum)


class ScheduledField(FieldAround):
    """A field along a descent of a known number of steps: each step gets the field at its progress and gamma.

    Args:
        field: a `GuidedField` or a `ComposedField`.
        steps: the number of steps of the whole descent.
        gammas: (steps,), the gamma input of a conditioned network at each step, such as `decay.gamma_path`; None for a
            network that is not conditioned on gamma.
    """

    def __init__(self, field: GradientField, steps: int, gammas: Tensor | None = None) -> None:
        if gammas is not None and gammas.shape != (steps,):
            raise ValueError(f"gammas have shape {tuple(gammas.shape)}; they must be (steps,) = ({steps},)")
        self.field = field
        self.steps = steps
        self.gammas = gammas

    def select(self, indices: Tensor) -> ScheduledField:
        """The field of the clips at `indices` (1-D integers)."""
        return ScheduledField(self.field.select(indices), self.steps, self.gammas)

    @property
    def settled(self) -> bool:
        """Whether the field is the same at every step."""
        return self.field.settled and self.gammas is None

    def at_progress(self, progress: float) -> GradientField:
        """The field at a point of the descent, 0 to 1."""
        return self.field.at_progress(progress)

    def at_step(self, step: int) -> GradientField:
        """The field at a step, 0 to steps - 1."""
        field = self.field.at_progress(step / self.steps)
        return field if self.gammas is None else field.tell(float(self.gammas[step]))

    def at_gamma(self, gamma: float | Tensor) -> GradientField:
        """The field at a solver's time."""
        return self.field.at_gamma(gamma)

    def tell(self, gamma: float | Tensor) -> GradientField:
        """The field with its network conditioned on `gamma`, whatever the step."""
        return self.field.tell(gamma)

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The field at the first step, and its sight."""
        return self.at_step(0).observed(latents)
