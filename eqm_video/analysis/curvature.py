"""The field's Jacobian, measured by products: is it a gradient (curl), and how large a step does it bear (curvature).

Legend: B clips, T frames, C channels, H W height and width, D = T C H W numbers of a clip, J the (D, D) Jacobian of the
field at a clip's latents, eta the step size, mu the look-ahead.

Curl. f is the gradient of an energy exactly where J is symmetric. |J - J^T|_F / |J|_F is 0 there, and 2 for a rotation.

Curvature. Near a point at rest the descent x <- x - eta f(x) multiplies an eigenvector of J by 1 - eta lambda. It comes
to rest only if |1 - eta lambda| < 1 for every eigenvalue it shall contract: eta < 2 Re(lambda) / |lambda|^2, which is
2 / lambda for a real one. With the look-ahead of `NAG` the multiplier is a root of
z^2 = z - eta lambda ((1 + mu) z - mu), and for a real lambda the limit is 2 / (lambda (1 + 2 mu)). Eigenvalues of
negative real part belong to directions that the descent leaves (noise that parts towards different data); no step makes
them contract, so they bound nothing. They can be the largest in size: the spectral radius and power iteration would
find them, and singular values bound a single step, not the descent, of a J that is not symmetric. What is measured is
therefore the part of the spectrum with the largest real parts, by Arnoldi iteration (a Krylov space of products J v).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqm_video.core.decay import Decay
from eqm_video.system.devices import double

Gradient = Callable[[Tensor], Tensor]

SAFETY = 0.5  # of the limit: there gradient descent takes the stiffest direction to rest in a single step
TRAVEL = 1.5  # an automatic step's way, in units of the way of a field that knows its data
ARRIVED = 0.995  # the gamma at which that way ends
OUTER = 0.5  # eigenvalues of at least this share of the largest real part count as stiff


class Linearisation:
    """Products with the field's Jacobian at fixed latents, without ever building it.

    J^T u is a backward pass. It is linear in u, so its own derivative along v is J v: a second backward pass, which
    needs no forward-mode formulas and works for a field that is itself made by autograd. One evaluation of the field
    serves all products. Attention uses its plain kernel, the only one that can be differentiated twice.

    Args:
        field: latents -> gradient of the same shape, differentiable; clips must not depend on each other.
        latents: (B, ...) floating point.

    Raises:
        ValueError: the field's value does not depend on the latents as far as autograd can see.
    """

    def __init__(self, field: Gradient, latents: Tensor) -> None:
        self.shape, self.dtype = latents.shape, latents.dtype
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._latents = latents.detach().clone().requires_grad_()
            self._value = field(self._latents)
            if not self._value.requires_grad:
                raise ValueError(
                    "the field's value does not depend on its latents as far as autograd can see: it must be "
                    "computed without detach and without no_grad"
                )
            self._direction = torch.zeros_like(self._value).requires_grad_()
            (self._pulled,) = torch.autograd.grad(self._value, self._latents, self._direction, create_graph=True)

    def along(self, vectors: Tensor) -> Tensor:
        """J v for vectors of the latents' shape."""
        if not self._pulled.requires_grad:  # the field is constant
            return torch.zeros_like(vectors)
        return torch.autograd.grad(self._pulled, self._direction, vectors.to(self._pulled), retain_graph=True)[0]

    def against(self, vectors: Tensor) -> Tensor:
        """J^T v for vectors of the latents' shape."""
        return torch.autograd.grad(self._value, self._latents, vectors.to(self._value), retain_graph=True)[0]


# Curl ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curl:
    """How far a field is from being a gradient.

    asymmetry: (B,) |J - J^T|_F / |J|_F, 0 for a gradient, 2 for a rotation, sqrt(2) for a random J.
    standard_error: (B,) of it, over the probes (jackknife); NaN for a single probe.
    """

    asymmetry: Tensor
    standard_error: Tensor


def curl(field: Gradient, latents: Tensor, *, probes: int = 8, generators: Sequence[torch.Generator]) -> Curl:
    """Measure the asymmetry of the field's Jacobian at latents (B, ...) with random probes.

    For a probe v of independent signs, E|Jv - J^T v|^2 = |J - J^T|_F^2 and E|Jv|^2 = |J|_F^2; the result is the root of
    the ratio of both means. generators: one for each clip. A field that does not change at all has asymmetry 0.

    Raises:
        ValueError: no probes, another number of generators, or a field that autograd cannot follow.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}; it must be at least 1, such as 8")
    _check_generators(latents, generators)
    jacobian = Linearisation(field, latents)
    odd, whole = [], []
    for _ in range(probes):
        probe = torch.stack([_signs(latents.shape[1:], one) for one in generators]).to(latents)
        forward, backward = double(jacobian.along(probe)), double(jacobian.against(probe))
        odd.append((forward - backward).square().flatten(1).sum(dim=1))
        whole.append(forward.square().flatten(1).sum(dim=1))
    return _ratio(torch.stack(odd), torch.stack(whole))


def _ratio(odd: Tensor, whole: Tensor) -> Curl:
    """Root of the ratio of means over the probes (P, B), with the jackknife's standard error."""

    def root(upper: Tensor, lower: Tensor) -> Tensor:
        return torch.where(lower > 0, upper / lower, 0).sqrt()

    count = len(odd)
    left_out = root(odd.sum(dim=0) - odd, whole.sum(dim=0) - whole)
    spread = (left_out - left_out.mean(dim=0)).square().sum(dim=0)
    error = (spread * (count - 1) / count).sqrt() if count > 1 else torch.full_like(spread, math.nan)
    return Curl(root(odd.sum(dim=0), whole.sum(dim=0)), error)


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent +1 and -1: of all probes with unit variance those with the least variance of the squares."""
    return torch.randint(0, 2, tuple(shape), generator=generator, device=generator.device) * 2 - 1


# Curvature ----------------------------------------------------------------------------------------------------------


def ritz_values(
    field: Gradient, latents: Tensor, *, iterations: int = 16, generators: Sequence[torch.Generator]
) -> Tensor:
    """Estimates of the outermost eigenvalues of J at latents (B, ...): (B, iterations) complex128, largest part first.

    Arnoldi iteration, batched over clips, from a random vector of each clip's generator. Exact (up to rounding) where
    `iterations` reaches the number of different eigenvalues; then values left over are 0. Sorted by real part.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1, such as 16")
    _check_generators(latents, generators)
    jacobian = Linearisation(field, latents)
    iterations = min(iterations, latents[0].numel())
    start = torch.stack([torch.randn(latents.shape[1:], generator=one, device=one.device) for one in generators])
    basis = [_unit(double(start.to(latents.device)).flatten(1))]  # of (B, D)
    projected = basis[0].new_zeros(len(latents), iterations + 1, iterations)
    for step in range(iterations):
        image = double(jacobian.along(basis[-1].reshape(latents.shape).to(latents.dtype))).flatten(1)
        size = image.norm(dim=1)
        for _ in range(2):  # twice is enough to stay orthogonal
            for row, vector in enumerate(basis):
                part = (vector * image).sum(dim=1)
                projected[:, row, step] += part
                image = image - part[:, None] * vector
        rest = image.norm(dim=1)
        # all of the image lies in the space already: the space is whole, and 0 vectors fill it up
        rest = torch.where(rest > 1e-5 * size if latents.dtype != torch.float64 else rest > 1e-12 * size, rest, 0)
        projected[:, step + 1, step] = rest
        basis.append(torch.where(rest[:, None] > 0, _unit(image), 0))
    values = torch.linalg.eigvals(projected[:, :iterations])
    return values.gather(1, values.real.argsort(dim=1, descending=True))


def stiffness(eigenvalues: Tensor) -> Tensor:
    """The curvature that bounds the step, (B,) float64, of eigenvalues (B, K): max |lambda|^2 / Re(lambda), which is
    the eigenvalue itself where it is real, over those whose real part is at least half of the largest one.

    0 where nothing contracts. Slow directions that turn are left out on purpose: their own limit may be lower, but what
    they gain in a descent of finitely many steps is small.
    """
    largest = eigenvalues.real.amax(dim=1, keepdim=True)
    negligible = 1e-6 * eigenvalues.abs().amax(dim=1, keepdim=True)
    stiff = (eigenvalues.real >= OUTER * largest) & (eigenvalues.real > negligible)
    bounds = eigenvalues.abs().square() / torch.where(stiff, eigenvalues.real, 1)
    return torch.where(stiff, bounds, 0).amax(dim=1)


def largest_curvature(
    field: Gradient, latents: Tensor, *, iterations: int = 16, generators: Sequence[torch.Generator]
) -> Tensor:
    """The curvature (B,), float64, that bounds the step at latents (B, ...): `stiffness` of `ritz_values`."""
    return stiffness(ritz_values(field, latents, iterations=iterations, generators=generators))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)


def _check_generators(latents: Tensor, generators: Sequence[torch.Generator]) -> None:
    if len(generators) != latents.shape[0]:
        raise ValueError(f"{len(generators)} generators for {latents.shape[0]} clips; give one for each clip")


# Steps --------------------------------------------------------------------------------------------------------------


def curvature_at(curvature: Mapping[str, Any], guidance_scale: float | None = None) -> float:
    """The largest curvature of a measured field, guided by `guidance_scale` (None: as it was measured).

    `curvature` is what `python -m eqm_video curvature MODEL --write` keeps: `largest`, measured at `guidance_scale`,
    and perhaps `by_guidance`, pairs [scale, curvature]. Curvature is nearly convex in the scale, so between two scales
    a straight line is on the safe side. Above the last one it grows by at most its share, and below 0 the weights
    1 - s and s of the two fields bound it.
    """
    pairs = {float(scale): float(value) for scale, value in curvature.get("by_guidance", ())}
    pairs[float(curvature["guidance_scale"])] = float(curvature["largest"])
    if guidance_scale is None:
        return float(curvature["largest"])
    known = sorted(pairs.items())
    (first, below), (last, above) = known[0], known[-1]
    if guidance_scale > last:
        grown = above * guidance_scale / last if last > 0 else max(pairs.values()) * (1 + 2 * guidance_scale)
        (left, low), (right, high) = known[-2:] if len(known) > 1 else (known[-1], (last + 1, above))
        return max(grown, high + (high - low) * (guidance_scale - right) / (right - left))
    if guidance_scale < first:
        return below if guidance_scale >= 0 else max(pairs.values()) * (1 - 2 * guidance_scale)
    for (left, low), (right, high) in itertools.pairwise(known):
        if left <= guidance_scale <= right:
            return low + (high - low) * (guidance_scale - left) / (right - left)
    return below  # the only scale there is


def step_limit(
    curvature: Mapping[str, Any],
    kind: str,
    mu: float = 0.0,
    guidance_scale: float | None = None,
    *,
    plain: Sequence[float] | None = None,
) -> float:
    """The step size from which on a descent does not come to rest: 2 / L for "gd" (and for "langevin", whose drift it
    is), 2 / (L (1 + 2 mu)) for "nag", of the largest curvature L. Infinite where nothing contracts.

    `plain` are the weights of a plain sum of labelled fields, which takes the place of guidance: fields that agree have
    sum |weight| times the curvature of one of them.

    Raises ValueError for a sampler whose step is not one along the gradient itself ("adam", solvers).
    """
    if kind not in ("gd", "nag", "langevin"):
        raise ValueError(f"sampler {kind!r} has no step limit of this kind; gd, nag and langevin have")
    if plain is None:
        largest = curvature_at(curvature, guidance_scale)
    else:
        largest = sum(abs(weight) for weight in plain) * curvature_at(curvature, 1.0)
    return 2 / (largest * (1 + 2 * mu * (kind == "nag"))) if largest > 0 else math.inf


def auto_step(
    curvature: Mapping[str, Any],
    kind: str,
    mu: float,
    steps: int,
    decay: Decay,
    guidance_scale: float | None = None,
    *,
    plain: Sequence[float] | None = None,
) -> float:
    """The step size of a descent of `steps` updates: as large as its way needs, and at most half of `step_limit`.

    A field that knows its data walks from noise to gamma = 0.995 in eta * steps = integral of dgamma / c(gamma). Half
    as much again is planned, since a learned field is weaker where it is unsure; with the default decay this is 2.3 /
    (gain * steps), between the paper's two settings for 250 steps (eta 0.003 and 0.0017, where this is 0.0023). A
    larger step is of no use: it follows the field less closely, and a long walk at rest drifts off the data. With few
    steps the limit binds, and the descent ends before it has come to rest: see `steps_to_rest`. A plain sum of
    fields (`plain`, as for `step_limit`) walks sum(weights) times as fast, and needs so much less.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; it must be a whole number of at least 1")
    pull = 1.0 if plain is None else sum(plain)
    if not pull > 0:
        raise ValueError(
            f"the weights of the plain sum add up to {pull:g}, so that it does not lead to the data and an automatic "
            "step has no way to plan for: give the step size (--step-size)"
        )
    limit = step_limit(curvature, kind, mu, guidance_scale, plain=plain)
    return min(SAFETY * limit, TRAVEL * way(decay) / (pull * steps))


def steps_to_rest(step_size: float, decay: Decay) -> int:
    """How many updates of this size the planned way takes."""
    return math.ceil(TRAVEL * way(decay) / step_size - 1e-9)


def way(decay: Decay) -> float:
    """eta * steps from gamma = 0 to 0.995 along a field that knows its data: the integral of dgamma / c(gamma).

    Raises ValueError for a decay that never comes to rest (a flow's constant one) or has stops on the way.
    """
    last = torch.tensor(1.0, dtype=torch.float64)
    times = torch.linspace(0, -math.log(1 - ARRIVED), 4001, dtype=torch.float64)  # u = -log(1 - gamma), smooth at 1
    gammas = -torch.expm1(-times)
    strengths = decay(gammas).double()
    if not bool((strengths > 0).all()) or float(decay(last)) > 1e-6 * float(strengths.max()):
        raise ValueError(
            f"an automatic step needs a field that comes to rest at gamma 1 and nowhere before, but was trained with "
            f"{decay!r}: give the step size (--step-size)"
        )
    return float(torch.trapezoid((1 - gammas) / strengths, times))
