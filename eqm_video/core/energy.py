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
"""Meanings of a network's output f: the gradient itself, or the f in the energy x.f(x) or |f(x)|^2 / 2."""


def frame_energies(latents: Tensor, sample: Tensor, energy: str) -> Tensor:
    """The energy of every frame (B, T), in float32 or better; a clip's energy is the sum over its frames.

    `dot` is the sum over C, H, W of x * f(x); `l2` is half the sum of f(x)^2. Both are low at data.

    Args:
        latents: (B, T, C, H, W), the point at which the network was evaluated.
        sample: (B, T, C, H, W), the network's raw output f at that point.
        energy: "dot" or "l2".

    Raises:
        ValueError: unequal shapes, or another energy: an implicit field is the gradient of no stated energy.
    """
    if energy not in ENERGIES[1:]:
        raise ValueError(f"energy is {energy!r}; only 'dot' and 'l2' have a value: name one of these")
    if latents.ndim != 5 or latents.shape != sample.shape:
        shapes = f"latents {tuple(latents.shape)}, sample {tuple(sample.shape)}"
        raise ValueError(f"shapes differ or are not (B, T, C, H, W): {shapes}")
    exact = torch.promote_types(torch.promote_types(latents.dtype, sample.dtype), torch.float32)
    with _no_autocast(latents.device):
        field = sample.to(exact)
        products = latents.to(exact) * field if energy == "dot" else field.square() / 2
        return products.sum(dim=(2, 3, 4))


@dataclass
class FieldOutput:
    """The result of `Field.forward`.

    sample: (B, T, C, H, W), the gradient to descend, in the dtype of the latents.
    hidden: (B, T, N, D), the network's tokens after its last block; None for a network that does not return them.
    energy: (B, T), the explicit energy of every frame; None for an implicit field.
    """

    sample: Tensor
    hidden: Tensor | None = None
    energy: Tensor | None = None


class Field(nn.Module):
    """A network seen as a gradient field, the same in training and in sampling.

    `network.config.energy` decides. The output of an implicit network (the default) is the field. The field of an
    explicit network is the true gradient of the summed energies of its frames, never the raw output: autograd computes
    it whatever the caller's grad mode, and `forward` raises a RuntimeError if autograd cannot reach the latents.

    Wrap this module, not the network, for several processes: the derivative by the input then stays inside `forward`.

    Args:
        network: callable `network(latents, labels, times=times)` whose result has `.sample`; with `gamma=gamma` too
            where `network.config.conditioned_on_gamma`, and with `kept=kept` where `network.keeps_conditions`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        config = getattr(network, "config", None)
        self.network = network
        self.energy: str = getattr(config, "energy", "implicit")
        self._conditioned = bool(getattr(config, "conditioned_on_gamma", False))
        # What a network computes of gamma is another thing at each step of a descent.
        self._keeps = bool(getattr(network, "keeps_conditions", False)) and not self._conditioned
        if self.energy not in ENERGIES:
            raise ValueError(f"the network's energy is {self.energy!r}; it must be one of {', '.join(ENERGIES)}")

    def forward(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        gamma: Tensor | None = None,
        kept: dict[Any, Any] | None = None,
    ) -> FieldOutput:
        """Evaluate the gradient at latents (B, T, C, H, W).

        labels: (B,) integers; times: (B, T); gamma: (B, T), passed on only to a network that is conditioned on it.
        kept: a dictionary for all evaluations with the same labels, times and weights, in which the network leaves what
        depends on these alone; ignored by a network that keeps nothing, and for gradients by the weights. The caller's
        tensors and the gradients of the parameters are not modified. The result can be differentiated again, as
        training does, exactly when the caller's grad mode is on.
        """
        kept = None if torch.is_grad_enabled() else kept
        if self.energy == "implicit":
            output = self._evaluate(latents, labels, times, gamma, kept)
            return FieldOutput(output.sample, getattr(output, "hidden", None))
        # Remember the caller's grad mode before enabling gradients. Leave inference mode: autograd cannot record its
        # tensors.
        twice = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            latents, labels, times, gamma = (_usable(tensor) for tensor in (latents, labels, times, gamma))
            if not (twice and latents.requires_grad):
                latents = latents.detach().requires_grad_()
            return self._gradient(latents, labels, times, gamma, twice, kept)

    def energies(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        gamma: Tensor | None = None,
        energy: str | None = None,
    ) -> Tensor:
        """The energy of every frame (B, T), without gradients.

        `energy` is "dot" or "l2", which any network has, or None for the network's own. Raises ValueError for the own
        energy of an implicit network, which has none.
        """
        with torch.no_grad():
            sample = self._evaluate(latents, labels, times, gamma).sample
            return frame_energies(latents, sample, self.energy if energy is None else energy)

    def _gradient(
        self,
        latents: Tensor,
        labels: Tensor | None,
        times: Tensor | None,
        gamma: Tensor | None,
        twice: bool,
        kept: dict[Any, Any] | None,
    ) -> FieldOutput:
        # Only the math attention kernel can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            inside = latents.view_as(latents)  # as the network sees them
            output = self._evaluate(inside, labels, times, gamma, kept)
            energy = frame_energies(latents, output.sample, self.energy)
            sample, through = None, None
            # Autocast has chosen the precision in the forward pass; the backward pass must keep it.
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

    def _evaluate(
        self,
        latents: Tensor,
        labels: Tensor | None,
        times: Tensor | None,
        gamma: Tensor | None,
        kept: dict[Any, Any] | None = None,
    ) -> Any:
        condition: dict[str, Any] = {"gamma": gamma} if self._conditioned else {}
        if self._keeps and kept is not None:
            condition["kept"] = kept
        return self.network(latents, labels, times=times, **condition)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast. A device that has no autocast ("meta", used to count costs) gets an empty one."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device_type=device.type, enabled=False) if known else nullcontext()


def _usable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself, or a copy if it was made in inference mode: autograd cannot record such a tensor."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def checkpoint_block(block: nn.Module, *inputs: Any) -> Any:
    """Gradient checkpointing for explicit energies: `network.enable_gradient_checkpointing(checkpoint_block)`.

    A block is recomputed twice: for the gradient by the latents, and for the gradient by the weights. The second time
    comes after `Field` has returned, so this function keeps the attention kernel of the forward pass. The graph of the
    first gradient lives until the second, so checkpointing saves less memory than it does for an implicit field.
    """
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_math_again)


def _math_again() -> tuple[Any, Any]:
    """Contexts of a block's forward pass, for which `Field` has chosen the kernel, and of its recomputations."""
    return nullcontext(), _MathKernel()


class _MathKernel(AbstractContextManager):
    """A reusable `sdpa_kernel(SDPBackend.MATH)`: both backward passes recompute the block, and each enters it."""

    def __enter__(self) -> None:
        self._kernel = sdpa_kernel(SDPBackend.MATH)
        self._kernel.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._kernel.__exit__(*error)
