"""Energies of a network, and the network seen as a gradient field: raw, or the true gradient of an explicit energy.

Legend: B clips, T frames, C channels, H W height and width, N tokens a frame, D width.
Source: EqM-E of arXiv 2510.02300, with f pointing from data to noise, so that descent lowers the energy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

ENERGIES = ("implicit", "dot", "l2")
"""What a network's output f means: the gradient itself, or what the energy x.f(x) or |f(x)|^2 / 2 is made of."""


def frame_energies(latents: Tensor, sample: Tensor, energy: str) -> Tensor:
    """The energy of every frame (B, T), in float32 or better; a clip's energy is the sum over its frames.

    `dot` is the sum over C, H, W of x * f(x); `l2` is half the sum of f(x)^2. Both are low at data.

    Args:
        latents: (B, T, C, H, W), where the network was evaluated.
        sample: (B, T, C, H, W), its raw output f there.
        energy: "dot" or "l2".

    Raises:
        ValueError: unequal shapes, or another energy: an implicit field is the gradient of no stated energy.
    """
    if energy not in ENERGIES[1:]:
        raise ValueError(f"energy is {energy!r}; only 'dot' and 'l2' have a value: name one of these")
    if latents.ndim != 5 or latents.shape != sample.shape:
        given = f"latents {tuple(latents.shape)}, sample {tuple(sample.shape)}"
        raise ValueError(f"shapes differ or are not (B, T, C, H, W): {given}")
    exact = torch.promote_types(torch.promote_types(latents.dtype, sample.dtype), torch.float32)
    with _no_autocast(latents.device):
        field = sample.to(exact)
        products = latents.to(exact) * field if energy == "dot" else field.square() / 2
        return products.sum(dim=(2, 3, 4))


@dataclass
class FieldOutput:
    """What a field returns.

    sample: (B, T, C, H, W), the gradient to descend, in the dtype of the latents.
    hidden: (B, T, N, D), the network's tokens after its last block; None where it gives none.
    energy: (B, T), the explicit energy of every frame; None for an implicit field.
    """

    sample: Tensor
    hidden: Tensor | None = None
    energy: Tensor | None = None


class Field(nn.Module):
    """A network seen as a gradient field, as it is trained and as it is sampled.

    An implicit network (`network.config.energy`, "implicit" where there is none) is its own field. Of an explicit one
    the field is the true gradient of the summed energies of its frames, never its raw output: it is computed by
    autograd whatever the caller's grad mode, and raises where autograd cannot reach the latents.

    This is the module to wrap for several processes, so that the derivative by the input stays inside `forward`.

    Args:
        network: callable `network(latents, labels, times=times)` whose result has `.sample`; with `gamma=gamma` too
            where `network.config.conditioned_on_gamma`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        config = getattr(network, "config", None)
        self.network = network
        self.energy: str = getattr(config, "energy", "implicit")
        self._told_gamma = bool(getattr(config, "conditioned_on_gamma", False))
        if self.energy not in ENERGIES:
            raise ValueError(f"the network's energy is {self.energy!r}; it must be one of {', '.join(ENERGIES)}")

    def forward(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> FieldOutput:
        """Evaluate the gradient at latents (B, T, C, H, W).

        labels: (B,) integers; times: (B, T); gamma: (B, T), handed on only to a network that is conditioned on it. The
        caller's tensors stay as they are, and so do the gradients of the parameters. The result can be differentiated
        again (training) exactly where grad mode is on.
        """
        if self.energy == "implicit":
            output = self._evaluate(latents, labels, times, gamma)
            return FieldOutput(output.sample, getattr(output, "hidden", None))
        # Read before grad mode is switched on; inference mode is left, whose tensors autograd refuses to remember.
        twice = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            latents, labels, times, gamma = (_usable(tensor) for tensor in (latents, labels, times, gamma))
            if not (twice and latents.requires_grad):
                latents = latents.detach().requires_grad_()
            return self._gradient(latents, labels, times, gamma, twice)

    def energies(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        gamma: Tensor | None = None,
        energy: str | None = None,
    ) -> Tensor:
        """The energy of every frame (B, T), without gradients; `energy` None is the network's own.

        "dot" and "l2" may be asked of any network. Raises ValueError for an implicit one that is asked for its own.
        """
        with torch.no_grad():
            sample = self._evaluate(latents, labels, times, gamma).sample
            return frame_energies(latents, sample, self.energy if energy is None else energy)

    def _gradient(
        self, latents: Tensor, labels: Tensor | None, times: Tensor | None, gamma: Tensor | None, twice: bool
    ) -> FieldOutput:
        # Of all attention kernels only the plain one has a second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            inside = latents.view_as(latents)  # as the network sees them
            output = self._evaluate(inside, labels, times, gamma)
            energy = frame_energies(latents, output.sample, self.energy)
            sample, through = None, None
            # The backward keeps the precision that autocast chose in the forward; it must not choose again.
            with _no_autocast(latents.device):
                if energy.requires_grad:
                    sample, through = torch.autograd.grad(
                        energy.sum(), (latents, inside), create_graph=twice, allow_unused=True
                    )
            if through is None:  # without this part the gradient of x.f(x) would be f itself, unnoticed
                raise RuntimeError(
                    f"autograd cannot follow the network back to its latents, so the energy {self.energy!r} has no "
                    "gradient: its forward must not detach, switch grad mode off or leave torch"
                )
        hidden = getattr(output, "hidden", None)
        if twice:
            return FieldOutput(sample, hidden, energy)
        return FieldOutput(sample, None if hidden is None else hidden.detach(), energy.detach())

    def _evaluate(self, latents: Tensor, labels: Tensor | None, times: Tensor | None, gamma: Tensor | None) -> Any:
        told = {"gamma": gamma} if self._told_gamma else {}
        return self.network(latents, labels, times=times, **told)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off; there are devices that do not know it ("meta", on which costs are counted)."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device_type=device.type, enabled=False) if known else nullcontext()


def _usable(tensor: Tensor | None) -> Tensor | None:
    """A tensor that autograd may remember: one made in inference mode is copied."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def checkpoint_block(block: nn.Module, *inputs: Any) -> Any:
    """Gradient checkpointing for explicit energies: `network.enable_gradient_checkpointing(checkpoint_block)`.

    A block is computed again for the gradient by the latents and for that by the weights, the second time after `Field`
    has returned: the attention kernel must still be the one of the forward. What the first gradient is made of is kept
    until the second, so that this saves less memory than it does for an implicit field.
    """
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_math_again)


def _math_again() -> tuple[Any, Any]:
    """Contexts of a block's forward, where Field has chosen already, and of its recomputations."""
    return nullcontext(), _MathKernel()


class _MathKernel(AbstractContextManager):
    """`sdpa_kernel(SDPBackend.MATH)` that can be entered again: a block is computed anew in each of both backwards."""

    def __enter__(self) -> None:
        self._kernel = sdpa_kernel(SDPBackend.MATH)
        self._kernel.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._kernel.__exit__(*error)
