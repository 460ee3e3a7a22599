"""Update rules of the descent x <- x - step_size * f: a rule says where to evaluate the field and how to step.

Legend: B clips, T frames. Every tensor of a rule's state has the batch first, so that the loop can drop stopped clips.
State of a frame is (B, T, ...), so that the loop can set it to 0 while the frame is paused. A rule is a frozen
dataclass with three methods; stopping, known frames, step schedules and counting belong to the loop (descent.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from eqm_video.randomness import normal
from eqm_video.samplers.checks import is_number
from eqm_video.samplers.levels import Step

State = dict[str, Tensor]


class Rule(Protocol):
    """The protocol of an update rule. `generators`, one for each clip or None, are for rules with randomness."""

    def start(self, latents: Tensor) -> State:
        """The state before the first update: tensors (B, ...), all 0."""

    def point(self, latents: Tensor, state: State) -> Tensor:
        """The point at which to evaluate the gradient, of the latents' shape."""

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """New latents and state; the inputs are not modified."""


class AtLatents:
    """A rule that evaluates the gradient at the latents themselves, and by default keeps nothing from step to step."""

    def start(self, latents: Tensor) -> State:
        """An empty state: the rule has no memory."""
        return {}

    def point(self, latents: Tensor, state: State) -> Tensor:
        """The latents themselves."""
        return latents


def _check_step_size(rule: object, step_size: object) -> None:
    if not is_number(step_size) or step_size <= 0:
        raise ValueError(f"{type(rule).__name__}: step_size is {step_size!r}; it must be a finite number above 0")


def _sized_along(rule: Any, step: Step) -> Any:
    """The rule with the step sizes eta (b, T) of its next update along the field, in place of its own step_size."""
    bound = copy.copy(rule)
    object.__setattr__(bound, "step_size", step.eta)
    return bound


def _scaled(step_size: float | Tensor, gradient: Tensor) -> Tensor:
    """The gradient times the step size, a number or (b, T)."""
    if not isinstance(step_size, Tensor):
        return step_size * gradient
    sizes = step_size.to(torch.promote_types(gradient.dtype, torch.float32))
    frames = sizes.shape if gradient.ndim > 2 else sizes.shape[:1]
    return (sizes.reshape(frames + (1,) * (gradient.ndim - len(frames))) * gradient).to(gradient.dtype)


def _check_fraction(rule: object, name: str, example: float) -> None:
    value = getattr(rule, name)
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"{type(rule).__name__}: {name} is {value!r}; it must be a number in [0, 1), such as {example}"
        )


@dataclass(frozen=True)
class GradientDescent(AtLatents):
    """Gradient descent, x <- x - step_size * f(x) (arXiv 2510.02300, section 3.3)."""

    step_size: float = 0.003  # eta

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)

    def along(self, step: Step) -> GradientDescent:
        """The rule with the step (b, T) of its next update, on a route."""
        return _sized_along(self, step)

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """The latents after a step down the gradient."""
        return latents - _scaled(self.step_size, gradient), state


@dataclass(frozen=True)
class NAG:
    """Nesterov look-ahead, x_{k+1} = x_k - step_size * f(x_k + mu * (x_k - x_{k-1})) (arXiv 2510.02300, section 3.3).

    The look-ahead is the last displacement, not an accumulated velocity; mu = 0 is gradient descent.
    """

    step_size: float = 0.003  # eta
    mu: float = 0.35  # look-ahead in units of the last displacement, in [0, 1)

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)
        _check_fraction(self, "mu", 0.35)

    def along(self, step: Step) -> NAG:
        """The rule with the step (b, T) of its next update, on a route."""
        return _sized_along(self, step)

    def start(self, latents: Tensor) -> State:
        """The displacement of the last step (B, T, ...), 0 at first."""
        return {"displacement": torch.zeros_like(latents)}

    def point(self, latents: Tensor, state: State) -> Tensor:
        """The look-ahead: the latents moved on by mu times their last displacement."""
        return latents + self.mu * state["displacement"]

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """The latents, not the look-ahead, after a step down the gradient at the look-ahead."""
        displacement = -_scaled(self.step_size, gradient)
        return latents + displacement, {"displacement": displacement}


@dataclass(frozen=True)
class Adam(AtLatents):
    """Adam on the field's values (Kingma and Ba, arXiv 1412.6980, with bias correction; as torch.optim.Adam).

        m <- beta1 m + (1 - beta1) f,  v <- beta2 v + (1 - beta2) f^2,
        x <- x - step_size * m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + epsilon)     at update k = 1, 2, ...

    With beta1 = beta2 = 0 (the default) this is x <- x - step_size * f / (|f| + epsilon): every number moves by nearly
    step_size whatever the field's strength, so that one step_size serves fields of any gain. It does not come to rest
    by itself, but ends within one step_size of the data: use a falling schedule ("linear", "cosine"). With a beta1, set
    a beta2 too: a field that passes through 0 would else be divided by almost nothing. The step sizes of a descent must
    add up to the longest way of a number from noise to data, about 3 or 4.
    """

    step_size: float = 0.03  # eta: nearly the distance that each number moves in one step
    beta1: float = 0.0  # memory of the mean of the field, in [0, 1)
    beta2: float = 0.0  # memory of the mean of its square, in [0, 1)
    epsilon: float = 1e-8  # added to the root of that mean, above 0

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)
        _check_fraction(self, "beta1", 0.9)
        _check_fraction(self, "beta2", 0.999)
        if not is_number(self.epsilon) or self.epsilon <= 0:
            raise ValueError(f"Adam: epsilon is {self.epsilon!r}; it must be a finite number above 0, such as 1e-8")

    def start(self, latents: Tensor) -> State:
        """The two means (B, T, ...) and the count of updates of each frame (B, T, 1, ...), all 0."""
        dtype = torch.promote_types(latents.dtype, torch.float32)
        counted = latents.shape[: 2 if latents.ndim > 2 else 1]
        shape = counted + (1,) * (latents.ndim - len(counted))
        count = torch.zeros(shape, dtype=dtype, device=latents.device)
        return {"mean": torch.zeros_like(latents), "square": torch.zeros_like(latents), "count": count}

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """The latents after a step down the mean gradient, divided by the root of the mean of the squared gradients."""
        count = state["count"] + 1
        mean = state["mean"].lerp(gradient, 1 - self.beta1)
        square = self.beta2 * state["square"] + (1 - self.beta2) * gradient.square()
        size = square.sqrt() / _bias(self.beta2, count).sqrt() + self.epsilon
        change = self.step_size / _bias(self.beta1, count) * (mean / size)
        return latents - change.to(latents.dtype), {"mean": mean, "square": square, "count": count}


def _bias(beta: float, count: Tensor) -> Tensor:
    """The bias correction 1 - beta^count, without loss of digits for beta near 1."""
    return -torch.expm1(count * math.log(beta)) if beta > 0 else torch.ones_like(count)


@dataclass(frozen=True)
class Langevin(AtLatents):
    """Unadjusted Langevin dynamics, x <- x - step_size * f(x) + sqrt(2 * step_size * temperature) * noise.

    If f is the gradient of an energy E, and for small steps, it samples exp(-E / temperature); temperature 0 is
    gradient descent. At a minimum of curvature k the chain has the variance 2 temperature / (k (2 - step_size k)). Each
    clip's noise comes from its own generator, so a clip does not depend on its batch.
    """

    step_size: float = 0.003  # eta
    temperature: float = 0.001  # in units of the energy, at least 0

    def __post_init__(self) -> None:
        _check_step_size(self, self.step_size)
        if not is_number(self.temperature) or self.temperature < 0:
            raise ValueError(f"Langevin: temperature is {self.temperature!r}; it must be a finite number >= 0")

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """The latents after a step down the gradient and a random one; ValueError without generators."""
        latents = latents - self.step_size * gradient
        if self.temperature == 0:
            return latents, state
        noise = clip_noise(latents, generators, self)
        return latents + math.sqrt(2 * self.step_size * self.temperature) * noise, state


def clip_noise(latents: Tensor, generators: Sequence[torch.Generator] | None, sampler: object) -> Tensor:
    """Standard normal noise like `latents` (B, ...), row k from `generators[k]`; ValueError if `generators` is None."""
    if generators is None:
        raise ValueError(f"{sampler!r} draws noise: give generators, one for each clip (randomness.generator(seed, k))")
    return normal(latents.shape[1:], generators, device=latents.device, dtype=latents.dtype)


@dataclass(frozen=True)
class Multistep(AtLatents):
    """Adams and Bashforth's rule of order 2 in steps of gamma: one evaluation a step, for few steps.

        v_n = f(x_n) / c(gamma_n),   r = h_n / h_{n-1},
        x_{n+1} = x_n - h_n ((1 + r / 2) v_n - r / 2 v_{n-1}),      h_n = gamma_{n+1} - gamma_n

    The field f of a decay c is c(gamma) times the velocity v, so that every decay is walked in the same way, and flow
    matching (c = 1) too. The first step, the first one after a frame has waited, and the last one of each frame are
    Euler's (r = 0): the last goes from gamma to 1 along the velocity at gamma, to the clip that the field predicts
    there. c is only ever divided by before a step, where gamma is below 1, never at c(1) = 0.

    It has no step size: the loop hands it the steps in gamma (`along`), from the number of steps of the descent.
    """

    needs_route: ClassVar[bool] = True
    few: ClassVar[int] = 12  # steps, where nothing says how many
    step: ClassVar[Step | None] = None  # of this update; on copies made by `along`

    def along(self, step: Step) -> Multistep:
        """The rule with the step (b, T) of its next update."""
        bound = copy.copy(self)
        object.__setattr__(bound, "step", step)
        return bound

    def start(self, latents: Tensor) -> State:
        """No velocity yet, and a last step of size 0 for every frame: (B, T, 1, ...)."""
        frames = latents.shape[:2] if latents.ndim > 2 else (len(latents), 1)
        shape = (*frames, *(1,) * (latents.ndim - 2))
        return {"velocity": torch.zeros_like(latents), "size": latents.new_zeros(shape)}

    def update(
        self, latents: Tensor, gradient: Tensor, state: State, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, State]:
        """One step along the velocity extrapolated to the middle of it; ValueError without a step in gamma."""
        if self.step is None:
            raise ValueError("Multistep steps in gamma: call run(..., decay=...) or descend(..., route=...)")
        step, past = self.step, state["size"]
        size, decay, last = (
            values.reshape(past.shape) for values in (step.size.to(past), step.decay.to(past), step.last)
        )
        moves = size > 0
        velocity = torch.where(moves, gradient / torch.where(moves, decay, 1), 0)
        ratio = torch.where((past > 0) & ~last, size / torch.where(past > 0, past, 1), 0)
        change = size * ((1 + ratio / 2) * velocity - ratio / 2 * state["velocity"])
        return latents - change, {"velocity": velocity, "size": size}


RULES: dict[str, type] = {
    "gd": GradientDescent,
    "nag": NAG,
    "multistep": Multistep,
    "adam": Adam,
    "langevin": Langevin,
}
