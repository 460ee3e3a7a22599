"""The student: a copy of the teacher's network without an input for gamma, trained on the teacher's paths.

Legend: B rows of a batch, T frames, C h w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqm_video.errors import UserError
from eqm_video.models.adapters import has_adapters
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.distill.paths import Paths, loss_of, step_ahead
from eqm_video.system import waits
from eqm_video.training.ema import Ema
from eqm_video.training.optim import Muon, Schedule, adamw, set_lr

WARMUP = 0.05  # share of the steps
EMA = 0.995
DECAY = {"kind": "linear", "gain": 1.0}  # of the equilibrium map: f = (1 - gamma) (noise - clean) on a straight path


@dataclass(frozen=True)
class Fit:
    """The training of a student: steps of `rows` states, and the largest learning rate."""

    steps: int
    rows: int
    lr: float
    seed: int


def untrained(teacher: EqMPipeline, steps: int) -> EqMPipeline:
    """A pipeline with a copy of the teacher's network, which samples by `steps` steps of size 1.

    UserError for a teacher whose network is no gradient itself, or has adapters.
    """
    network = teacher.transformer
    if network.config.energy != "implicit":
        raise UserError(
            f"the teacher has an explicit energy ({network.config.energy}), and a student learns a gradient itself: "
            "give a model of energy implicit"
        )
    if has_adapters(network):
        raise UserError("the teacher's network has adapters: merge them first (fuse_lora), and save it")
    copied = type(network).from_config({**network.config, "conditioned_on_gamma": False})
    copied.load_state_dict(network.state_dict())
    config = teacher.config
    made = EqMPipeline(
        copied.float().to(teacher.device),
        teacher.vae,
        config.id2label,
        decay=DECAY,
        sampler={"kind": "gd", "step_size": 1.0, "steps": steps, "guidance_scale": 1.0},
        frames=config.frames,
        fps=config.fps,
        reference_fps=config.reference_fps,
        size=config.size,
    )
    made.set_progress_bar_config(disable=True)
    return made


def train(student: EqMPipeline, paths: Paths, fit: Fit) -> list[float]:
    """Train the student's network on the paths, and leave the average of its weights in it; the loss of every step."""
    network, device = student.transformer, student.device
    network.train().requires_grad_(True)
    _scale_output(student, paths, fit)
    matrices = any(name.startswith("blocks.") and p.ndim == 2 for name, p in network.named_parameters())
    optimizer = (Muon if matrices else adamw)(network, lr=fit.lr)
    schedule = Schedule(fit.lr, fit.steps, max(1, round(WARMUP * fit.steps)), "cosine", 0.02)
    average, losses = Ema(network, EMA), []
    for step in waits.bar(range(1, fit.steps + 1), "training the student", unit="step"):
        states, rests, labels = paths.draw(fit.rows, fit.seed, step)
        field = _field(student, labels)
        states = step_ahead(field, states.to(device))
        loss = loss_of(field, states, rests.to(device))
        set_lr(optimizer, schedule(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
        losses.append(float(loss.detach()))
    network.load_state_dict(average.network.state_dict())
    network.eval().requires_grad_(False)
    return losses


def _field(student: EqMPipeline, labels: Sequence[str | None]) -> nn.Module:
    return student.field(labels, guidance_scale=1.0)


@torch.no_grad()
def _scale_output(student: EqMPipeline, paths: Paths, fit: Fit) -> None:
    """Scale the network's output layer so that its first guess is nearest to the way, in the least-squares sense."""
    states, rests, labels = paths.draw(fit.rows, fit.seed, 0)
    states, rests = states.to(student.device), rests.to(student.device)
    guess = _field(student, labels)(states)
    scale = float((guess * (states - rests)).sum() / guess.square().sum().clamp(min=1e-12))
    head = student.transformer.head.linear if hasattr(student.transformer, "head") else student.transformer.conv_out
    for weight in head.parameters():
        weight.mul_(scale)


def rest_error(student: EqMPipeline, states: Tensor, labels: Sequence[str | None]) -> Tensor:
    """RMS (B,) of the student's step at states (B, T, C, h, w): 0 at its fixed points."""
    with torch.no_grad():
        return _field(student, labels)(states.to(student.device)).square().flatten(1).mean(dim=1).sqrt().cpu()
