"""Optimizers, AdamW and Muon, and learning-rate schedules, which depend on the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqm_video.errors import UserError
from eqm_video.system.machine import has_bf16
from eqm_video.training.sharding import own, part_of, whole

STACKED = 1 << 26  # entries of matrices that are orthogonalized together: a bound on memory


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a pure function of the step: there is no state to save.

    The first `warmup` of `steps` optimizer steps are a linear warm-up, then `kind` (constant, linear or cosine)
    down to `floor` x `lr` at the last step.
    """

    lr: float
    steps: int
    warmup: int = 0
    kind: str = "constant"
    floor: float = 0.0  # fraction of lr at the last step

    def __call__(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 1."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.kind == "constant":
            return self.lr
        if self.kind == "linear":
            return self.lr * (1 - (1 - self.floor) * progress)
        if self.kind == "cosine":
            return self.lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        raise ValueError(f"unknown schedule {self.kind!r}: constant, linear or cosine")


def adamw(
    network: nn.Module, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, fused if the device has such a kernel; weight decay on matrices only."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda", "xpu") and p.is_floating_point() for p in trainable)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, fused=fused)


@torch.no_grad()
def orthogonalize(matrices: Tensor, steps: int, coefficients: Sequence[float], eps: float) -> Tensor:
    """The matrices (N, rows, columns) with their singular values moved to about 1, into [0.5, 1.5].

    `steps` Newton-Schulz iterations of the odd polynomial a x + b x^3 + c x^5, in the precision of `matrices`, keep the
    singular vectors. `eps` is the smallest norm to divide by, so that a matrix of zeros stays zero.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # so that x xᵀ is the smaller of the two products
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value is above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _loss_of(closure: Callable[[], float] | None) -> float | None:
    """The loss that a step's closure computes, with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def can_refuse(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_unless` works with this optimizer on its device: Muon, and AdamW where it is fused."""
    parts = getattr(optimizer, "parts", [optimizer])
    return all(isinstance(part, MatrixMuon) or part.defaults.get("fused") for part in parts)


@contextmanager
def step_unless(optimizer: torch.optim.Optimizer, refused: Tensor) -> Iterator[None]:
    """A block in which `optimizer.step()` changes neither weights nor state if `refused`, () float32, is 1 (else 0).

    `refused` stays on its device. It is handed over as torch's gradient scaler does: as the attribute `found_inf`.
    """
    parts = getattr(optimizer, "parts", [optimizer])
    for part in parts:
        part.found_inf = refused
    try:
        yield
    finally:
        for part in parts:
            del part.found_inf


class MatrixMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices: a step is the orthogonalized momentum.

    Formula, groups and state are those of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` (its state_dict
    loads here and ours there), except for the precision: bfloat16 only on GPUs that compute in it. On a CPU a product
    in bfloat16 takes up to 60 times as long as in float32. Matrices of the same shape are handled together.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": 0.95,
            "nesterov": True,
            "ns_coefficients": (3.4445, -4.7750, 2.0315),
            "eps": 1e-7,
            "ns_steps": 5,
            "adjust_lr_fn": "match_rms_adamw",
        }
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix that has a gradient; returns the loss of `closure`, if any."""
        loss = _loss_of(closure)
        refused = getattr(self, "found_inf", None)
        if refused is not None and refused.device.type == "cpu":
            if refused:
                return loss
            refused = None  # nothing to mask
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            for alike in _stacks(matrices):
                self._step(alike, group, refused)
        return loss

    def _step(self, matrices: list[Tensor], group: dict[str, Any], refused: Tensor | None) -> None:
        """Update matrices of the same shape, dtype and device; nothing changes if `refused`, on a GPU, is 1."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix.grad)
        gradients = [matrix.grad for matrix in matrices]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        before = torch.stack(momenta) if refused is not None else None
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        # A matrix in parts is gathered: its singular values are those of the whole.
        stack = torch.stack([whole(matrix) for matrix in ahead]).to(_precision(matrices[0]))
        stack = orthogonalize(stack, group["ns_steps"], group["ns_coefficients"], group["eps"]).to(matrices[0].dtype)
        rms = 0.2 * math.sqrt(max(matrices[0].shape))  # the RMS of AdamW's steps (Moonshot, arXiv 2502.16982)
        decay: Any = 1 - group["lr"] * group["weight_decay"]
        if refused is not None:  # never for matrices in parts
            keep = refused > 0
            torch._foreach_copy_(momenta, list(torch.where(keep, before, torch.stack(momenta)).unbind()))
            stack, decay = stack.masked_fill(keep, 0.0), torch.where(keep, 1.0, decay)
        torch._foreach_mul_(matrices, decay)
        steps = [own(part_of(step, matrix)) for step, matrix in zip(stack.unbind(), matrices, strict=True)]
        torch._foreach_add_([own(matrix) for matrix in matrices], steps, alpha=-group["lr"] * rms)


def _stacks(matrices: Sequence[Tensor]) -> list[list[Tensor]]:
    """The matrices in lists of equal shape, dtype and device, with at most `STACKED` entries (or a single matrix)."""
    alike: dict[Any, list[Tensor]] = {}
    for matrix in matrices:
        alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(matrix)
    stacks = []
    for same in alike.values():
        most = max(1, STACKED // same[0].numel())
        stacks += [same[first : first + most] for first in range(0, len(same), most)]
    return stacks


def _precision(matrix: Tensor) -> torch.dtype:
    """The precision in which a matrix is orthogonalized."""
    if matrix.device.type == "cuda" and has_bf16(matrix.device):
        return torch.bfloat16
    return torch.promote_types(matrix.dtype, torch.float32)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

    Muon's steps are as large as AdamW's, so both share a learning rate; `matrix_scale` is the learning rate of the
    matrices in units of it. Modulations, embeddings and the head stay with AdamW: they start at zero, or do not map
    between hidden widths.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        matrix_scale: float = 1.0,
    ) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        hidden = {name for name, p in named if p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name}
        matrices = [p for name, p in named if name in hidden]
        if not matrices:
            raise UserError(
                "train.optimizer=muon steps the matrices of a transformer's blocks, and this network has none: type "
                "train.optimizer=adamw"
            )
        rest = nn.ParameterList([p for name, p in named if name not in hidden])
        self.parts = [
            MatrixMuon(
                [{"params": matrices, "lr_scale": matrix_scale}], lr=lr * matrix_scale, weight_decay=weight_decay
            ),
            adamw(rest, lr=lr, betas=betas, weight_decay=weight_decay),
        ]
        super().__init__([*matrices, *rest], {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        """Make `param_groups` the parts' own groups: a learning rate that is set here is set there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters by both optimizers; returns the loss of `closure`, if any."""
        loss = _loss_of(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": Muon}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times the group's `lr_scale` (1 by default)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
