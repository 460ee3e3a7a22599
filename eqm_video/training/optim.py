"""Optimizer and learning rate: both need nothing but the network and the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eqm_video.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A learning rate that is a pure function of the step, so that it has no state to save.

    `steps` optimizer steps in all: a linear warm-up over the first `warmup`, then `kind` (constant, linear or cosine)
    down to `floor` x `lr` at the last step.
    """

    lr: float
    steps: int
    warmup: int = 0
    kind: str = "constant"
    floor: float = 0.0  # fraction of lr

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
    """AdamW over the trainable parameters, fused where the device has such a kernel; weight decay on matrices only."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda", "xpu") and p.is_floating_point() for p in trainable)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, fused=fused)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

    Muon (Jordan et al. 2024, `torch.optim.Muon`) orthogonalizes the momentum of a matrix before it steps; with
    `match_rms_adamw` (Moonshot, arXiv 2502.16982) its steps are as large as AdamW's, so both can share one learning
    rate; `matrix_scale` is that of the matrices in units of it. Modulations, embeddings and the head, which start at
    zero or are no maps between hidden widths, stay with AdamW.
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
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"train.optimizer=muon needs torch 2.9 or newer, this is {torch.__version__}: upgrade torch, or type "
                "train.optimizer=adamw"
            )
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
            torch.optim.Muon(
                [{"params": matrices, "lr_scale": matrix_scale}],
                lr=lr * matrix_scale,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            adamw(rest, lr=lr, betas=betas, weight_decay=weight_decay),
        ]
        super().__init__([*matrices, *rest], {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        """One list of the parts' own groups: who sets a learning rate here sets it there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": Muon}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate for the next step of every parameter group, times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
