"""The field's Jacobian, measured by products: its asymmetry (curl), and the step size that it allows (curvature).

Legend: B clips, T frames, C channels, H W height and width, D = T C H W numbers of a clip, J the (D, D) Jacobian of the
field at a clip's latents, eta the step size, mu the look-ahead.

Curl. f is the gradient of an energy exactly if J is symmetric. |J - J^T|_F / |J|_F is then 0; it is 2 for a rotation.

Curvature. Near a point at rest the descent x <- x - eta f(x) multiplies an eigenvector of J by 1 - eta lambda. It comes
to rest only if |1 - eta lambda| < 1 for every eigenvalue that must contract: eta < 2 Re(lambda) / |lambda|^2, which is
2 / lambda for a real lambda. With the look-ahead of `NAG` the multiplier is a root of
z^2 = z - eta lambda ((1 + mu) z - mu), and for a real lambda the limit is 2 / (lambda (1 + 2 mu)). Eigenvalues with
a negative real part belong to directions along which the descent moves away (noise between different data). No step
makes them contract, so they set no limit. They can be the largest in size, so the spectral radius and power iteration
would return them; and for a J that is not symmetric, singular values bound a single step, not the descent. Arnoldi
iteration (a Krylov space of products J v) therefore measures the eigenvalues with the largest real parts.
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

SAFETY = 0.5  # share of the limit; gradient descent then brings the stiffest direction to rest in a single step
TRAVEL = 1.5  # planned length of a descent, in units of `way`
ARRIVED = 0.995  # the gamma at which `way` ends
OUTER = 0.5  # eigenvalues of at least this share of the largest real part count as stiff


class Linearisation:
    """Products with the field's Jacobian J at fixed latents; the matrix itself is never built.

    J^T u is a backward pass. It is linear in u, so its own derivative along v is J v: a second backward pass, which
    needs no forward-mode formulas and works for a field that is itself made by autograd. A single evaluation of the
    field serves all products. Attention uses the math kernel, the only one that can be differentiated twice.

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
        """The products J v (B, ...) for vectors v of the latents' shape."""
        if not self._pulled.requires_grad:  # the field is constant
            return torch.zeros_like(vectors)
        return torch.autograd.grad(self._pulled, self._direction, vectors.to(self._pulled), retain_graph=True)[0]

    def against(self, vectors: Tensor) -> Tensor:
        """The products J^T v (B, ...) for vectors v of the latents' shape."""
        return torch.autograd.grad(self._value, self._latents, vectors.to(self._value), retain_graph=True)[0]


# Curl ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curl:
    """The distance of a field from a gradient, measured on its Jacobian J.

    asymmetry: (B,) |J - J^T|_F / |J|_F, 0 for a gradient, 2 for a rotation, sqrt(2) for a random J.
    standard_error: (B,) standard error of the asymmetry, over the probes (jackknife); NaN for a single probe.
    """

    asymmetry: Tensor
    standard_error: Tensor


def curl(field: Gradient, latents: Tensor, *, probes: int = 8, generators: Sequence[torch.Generator]) -> Curl:
    """Measure the asymmetry of the field's Jacobian at latents (B, ...) with random probes.

    For a probe v of independent signs, E|Jv - J^T v|^2 = |J - J^T|_F^2 and E|Jv|^2 = |J|_F^2; the result is the root of
    the ratio of both means. generators: a generator for each clip. A constant field has asymmetry 0.

    Raises:
        ValueError: no probes, a different number of generators, or a field that autograd cannot follow.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}; it must be at least 1, such as 8")
    _check_generators(latents, generators)
    jacobian = Linearisation(field, latents)
    odd, whole = [], []
    for _ in range(probes):
        probe = torch.stack([_signs(latents.shape[1:], generator) for generator in generators]).to(latents)
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
    """Independent random +1 and -1, the probes of unit variance whose squares vary least."""
    return torch.randint(0, 2, tuple(shape), generator=generator, device=generator.device) * 2 - 1


# Curvature ----------------------------------------------------------------------------------------------------------


def ritz_values(
    field: Gradient, latents: Tensor, *, iterations: int = 16, generators: Sequence[torch.Generator]
) -> Tensor:
    """Estimates of the outermost eigenvalues of J at latents (B, ...): (B, iterations) complex128, by real part.

    The largest real part comes first. Arnoldi iteration, batched over clips, from a random vector of each clip's
    generator. Exact (up to rounding) if `iterations` reaches the number of distinct eigenvalues; the rest are then 0.
    Raises ValueError for iterations < 1 or a different number of generators than clips.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1, such as 16")
    _check_generators(latents, generators)
    jacobian = Linearisation(field, latents)
    iterations = min(iterations, latents[0].numel())
    shape = latents.shape[1:]
    start = torch.stack([torch.randn(shape, generator=draw, device=draw.device) for draw in generators])
    basis = [_unit(double(start.to(latents.device)).flatten(1))]  # vectors (B, D)
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
        # An image that lies in the space already completes it: the other vectors of the basis are 0.
        rest = torch.where(rest > 1e-5 * size if latents.dtype != torch.float64 else rest > 1e-12 * size, rest, 0)
        projected[:, step + 1, step] = rest
        basis.append(torch.where(rest[:, None] > 0, _unit(image), 0))
    values = torch.linalg.eigvals(projected[:, :iterations])
    return values.gather(1, values.real.argsort(dim=1, descending=True))


def stiffness(eigenvalues: Tensor) -> Tensor:
    """The curvature (B,) float64 that limits the step size, from eigenvalues (B, K).

    It is the maximum of |lambda|^2 / Re(lambda), which is lambda for a real one, over the eigenvalues whose real part
    is at least half of the largest. 0 if no direction contracts. Slow directions that rotate are left out on purpose:
    their own limit may be lower, but they grow little in a descent of finitely many steps.
    """
    largest = eigenvalues.real.amax(dim=1, keepdim=True)
    negligible = 1e-6 * eigenvalues.abs().amax(dim=1, keepdim=True)
    stiff = (eigenvalues.real >= OUTER * largest) & (eigenvalues.real > negligible)
    bounds = eigenvalues.abs().square() / torch.where(stiff, eigenvalues.real, 1)
    return torch.where(stiff, bounds, 0).amax(dim=1)


def largest_curvature(
    field: Gradient, latents: Tensor, *, iterations: int = 16, generators: Sequence[torch.Generator]
) -> Tensor:
    """The curvature (B,), float64, that limits the step size at latents (B, ...): `stiffness` of `ritz_values`."""
    return stiffness(ritz_values(field, latents, iterations=iterations, generators=generators))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)


def _check_generators(latents: Tensor, generators: Sequence[torch.Generator]) -> None:
    if len(generators) != latents.shape[0]:
        raise ValueError(f"{len(generators)} generators for {latents.shape[0]} clips; give one for each clip")


# Steps --------------------------------------------------------------------------------------------------------------


def curvature_at(curvature: Mapping[str, Any], guidance_scale: float | None = None) -> float:
    """The largest curvature of a measured field at `guidance_scale` (None: the scale of the measurement).

    `curvature` is the record that `eqm-video curvature MODEL --write` keeps: `largest`, measured at
    `guidance_scale`, and perhaps `by_guidance`, pairs [scale, curvature]. Curvature is nearly convex in the scale, so a
    straight line between two scales is on the safe side. Above the last scale it grows at most in proportion; below 0
    the weights 1 - s and s of the two fields bound it.
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
    return below  # measured at a single scale


def step_limit(
    curvature: Mapping[str, Any],
    kind: str,
    mu: float = 0.0,
    guidance_scale: float | None = None,
    *,
    plain: Sequence[float] | None = None,
) -> float:
    """The smallest step size at which a descent does not come to rest, from the largest curvature L.

    It is 2 / L for "gd", and for "langevin", which drifts by gradient descent; 2 / (L (1 + 2 mu)) for "nag"; infinite
    if no direction contracts. `plain` are the weights of a plain sum of labelled fields, in place of guidance: fields
    that agree have sum |weight| times the curvature of a single field.

    Raises ValueError for a sampler that does not step along the gradient itself ("adam", solvers).
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
    """The automatic step size of a descent of `steps` updates: large enough to arrive, at most half of `step_limit`.

    A field that is certain of its data descends from noise to gamma = 0.995 in eta * steps = integral of
    dgamma / c(gamma), see `way`. The plan is 1.5 times that, since a learned field is weaker where it is uncertain.
    With the default decay the step is 2.3 / (gain * steps): 0.0023 for 250 steps, between the paper's settings 0.003
    and 0.0017. A larger step does not help: it follows the field less closely, and a long descent at rest drifts off
    the data. With few steps the limit applies, and the descent ends before it has come to rest: see `steps_to_rest`. A
    plain sum of fields (`plain`, as for `step_limit`) moves sum(weights) times as fast, so its step is smaller by that.

    Raises ValueError for steps < 1, weights whose sum is not positive, and as `step_limit` and `way` do.
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
    """The number of updates of size `step_size` that a descent to rest takes by plan: 1.5 times `way`, rounded up."""
    return math.ceil(TRAVEL * way(decay) / step_size - 1e-9)


def way(decay: Decay) -> float:
    """The eta * steps from gamma = 0 to 0.995 with a field that is certain of its data: integral of dgamma / c(gamma).

    Raises ValueError for a decay that never comes to rest (a flow's constant one) or is 0 on the way.
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
