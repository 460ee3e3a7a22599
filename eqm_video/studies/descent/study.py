"""Recorded descents: gradient, energy and gamma at every evaluation, for a model or for two from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.options import narrower, option, required
from eqm_video.samplers import SIZED, Dopri5, Sampler
from eqm_video.sampling.arguments import default_steps
from eqm_video.sampling.option_groups import Ruled, Stepping
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.descent.pictures import draw_curves, draw_film, draw_strip
from eqm_video.studies.descent.trace import Trace, is_flow, trace
from eqm_video.studies.study import Compared, Report
from eqm_video.system import machine
from eqm_video.wording import counted


@dataclass(frozen=True, kw_only=True)
class Descent(Compared, Ruled, Stepping, group="look"):
    """Gradient, energy and frames along a descent, of one model or two.

    descent.png shows the gradient's root mean square, the energy and the gamma of every frame along the descent (the
    paper's Figure 12). strip.png shows the samples while they form (its Figure 4), and descent.gif shows them as a
    film, with a bar of gamma below every frame. MODEL2, such as a flow model, starts from the same noise. All samples
    are a single batch, whatever --batch-size says: the whole descent is kept.

    A model with an explicit energy (dot, l2) shows that energy. An implicit model has none: its curve is the score x.f,
    the mean of latents times gradient, which need not fall at every step. Gamma is estimated from the unguided gradient
    of a model that is not conditioned on gamma; for a flow model it is the solver's time.
    """

    model: str = required()  # declared again, to stand before MODEL2
    against: str | None = narrower(None, positional=True)
    against_sampler: str | None = narrower(None, unset="euler for a flow model, else the model's own")
    names: tuple[str, ...] | None = option(
        None, metavar="NAME", help="names of the models in the pictures", unset="names of their folders"
    )
    clips: int = option(3, least=1, metavar="M", help="show M clips of each model")
    columns: int = option(8, least=2, most=100, metavar="S", help="number of states in the strip")

    def check(self) -> None:
        """UserError unless --names has a name for each model."""
        count = len(self.paths())
        if self.names is not None and len(self.names) != count:
            raise UserError(
                f"--names gives {counted(len(self.names), 'name')} for {counted(count, 'model')}; give one for each"
            )

    def run(self, *models: EqMPipeline) -> Report:
        """Record the descents of each model in turn."""
        traces = []
        for pipeline, name in zip(models, self.names or default_names(self.paths()), strict=True):
            request = self.request(pipeline)
            steps = self.steps or default_steps(pipeline.config.sampler, self.sampler)
            sampler = self.choose_sampler(pipeline, steps, against=bool(traces))
            traces.append(trace(pipeline, request, name, sampler, steps, self.clips))
        captions, shown = request.names, range(min(self.clips, self.num_samples))
        record = {
            "settings": {**request.settings(), "machine": machine.describe(models[-1].device)},
            "models": [{"model": str(path), **numbers(each)} for path, each in zip(self.paths(), traces, strict=True)],
        }
        pictures = {
            "descent.png": lambda path: draw_curves(path, traces),
            "strip.png": lambda path: draw_strip(path, traces, shown, self.columns, captions),
            "descent.gif": lambda path: draw_film(path, traces, shown, captions),
        }
        return Report(record, as_table(traces), pictures)

    def choose_sampler(self, pipeline: EqMPipeline, steps: int, *, against: bool) -> Sampler:
        """The sampler of a model. --step-size and --mu are for MODEL2 too if a rule samples it.

        UserError for dopri5: its steps differ from clip to clip, so clips share no evaluations.
        """
        kind = (self.against_sampler if against else self.sampler) or ("euler" if is_flow(pipeline) else None)
        if against and kind is not None and kind not in SIZED:
            sampler = pipeline.rule(kind)
        else:
            more = {"steps": steps, "guidance_scale": self.guidance_scale}
            sampler = pipeline.rule(kind, self.step_size, self.mu, **more)
        if isinstance(sampler, Dopri5):
            flag = "--against-sampler" if against else "--sampler"
            raise UserError(
                f"dopri5 takes other steps for every clip, so clips share no evaluations: type {flag} euler or heun"
            )
        return sampler


def default_names(models: Sequence[str | Path]) -> list[str]:
    """The names of the models' folders; for an export the name of its run."""
    folders = [Path(model) for model in models]
    return [folder.parent.name if folder.name == "export" else folder.name or str(folder) for folder in folders]


def numbers(trace: Trace) -> dict[str, Any]:
    """The record of a trace: mean and spread over clips and frames, at every evaluation and every kept state."""
    curves = {"gradient_rms": trace.rms, "energy": trace.energy, "gamma": trace.gamma}
    return {
        "name": trace.name,
        **trace.settings,
        "energy_is": f"{trace.measure}, mean over the values of a frame",
        "states": trace.states,
        **{name: spread(values) for name, values in curves.items() if values is not None},
        "expected_for_one_data_point": {name: values.tolist() for name, values in trace.expected.items()},
        "share_of_steps_that_lower_the_energy": lowered(trace.energy),
    }


def spread(values: Tensor) -> dict[str, list[float]]:
    """Mean, 10th and 90th percentile of values (E, B, T) over clips and frames: lists (E,)."""
    flat = values.double().flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.1, 0.9], dtype=torch.float64), dim=1)
    return {"mean": flat.mean(1).tolist(), "p10": low.tolist(), "p90": high.tolist()}


def lowered(energy: Tensor) -> float:
    """Share of the steps of all clips after which the energy (E, B, T) of the clip is lower; 1 for a single state."""
    clips = energy.double().sum(2)
    return float((clips[1:] < clips[:-1]).double().mean()) if len(clips) > 1 else 1.0


def as_table(traces: Sequence[Trace]) -> str:
    """A line for each model: evaluations, and gradient and energy at the first and the last of them."""
    lines = []
    for record in traces:
        first, last = float(record.rms[0].mean()), float(record.rms[-1].mean())
        start, end = float(record.energy[0].mean()), float(record.energy[-1].mean())
        lines.append(
            f"{record.name}: {record.settings['nfe']} evaluations; gradient RMS {first:.3g} -> {last:.3g}, "
            f"{record.measure} {start:.3g} -> {end:.3g}, lower after {lowered(record.energy):.0%} of the steps"
        )
    return "\n".join(lines)
