"""Recorded descents: gradient, energy and gamma at every evaluation, for a model or for two from the same noise.

Legend: E evaluations, S states, B clips, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.options import narrower, option, required
from eqm_video.output import media, plots
from eqm_video.output.grids import PAPER
from eqm_video.output.overlays import draw_gamma_bars
from eqm_video.samplers import SIZED, Dopri5, Sampler
from eqm_video.sampling.arguments import default_steps
from eqm_video.sampling.option_groups import Ruled, Stepping
from eqm_video.sampling.pipeline import EqMPipeline
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


# Pictures -------------------------------------------------------------------------------------------------------------

WIDTH = 640  # pixels: the approximate width of a film
PICTURES = 36  # pictures in a film, at most
FPS, HOLD = 8.0, 12  # pictures per second, and pictures for which the end of a film is repeated


def draw_curves(path: Path, traces: Sequence[Trace]) -> None:
    """Draw gradient, energy and gamma over the evaluations: the mean, and the middle 80 % of all frames."""
    figure = plots.figure(6.0, 7.2)
    measures = " / ".join(dict.fromkeys(record.measure for record in traces))
    rms = plots.axes(figure, 3, 1, 1, ylabel="gradient, RMS of a frame", yscale="log")
    energy = plots.axes(figure, 3, 1, 2, ylabel=f"{measures}, per value")
    gamma = plots.axes(figure, 3, 1, 3, ylabel="gamma of a frame", xlabel="evaluations of the field")
    for index, record in enumerate(traces):
        ends = np.asarray(record.states) * record.settings["nfe"] / record.settings["steps"]
        _band(rms, np.arange(len(record.rms)), record.rms, index, record.name)
        _band(energy, np.arange(len(record.energy)), record.energy, index, record.name)
        if record.gamma is not None:
            _band(gamma, ends, record.gamma, index, record.name)
        for axes, name in ((rms, "rms"), (energy, "energy"), (gamma, "gamma")):
            if name in record.expected:
                label = "closed form, one data point" if index == 0 else None
                axes.plot(record.expected[name], "--", color=plots.GREY, linewidth=1, label=label)
    low = min(float(record.rms.flatten(1).mean(1).min()) for record in traces)
    rms.set_ylim(bottom=low / 3)  # the closed form falls to 0
    rms.set_title("Descents from noise: mean and middle 80 % of the frames", fontsize=11)
    plots.legend(rms)
    plots.save(figure, path)


def _band(axes: Any, places: np.ndarray, values: Tensor, index: int, label: str) -> None:
    """Draw the mean of values (E, B, T) over clips and frames, and a band from the 10th to the 90th percentile."""
    flat = values.double().flatten(1).numpy()
    colour = plots.PALETTE[index]
    low, high = np.quantile(flat, [0.1, 0.9], axis=1)
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(places, flat.mean(1), color=colour, label=label)


def draw_strip(path: Path, traces: Sequence[Trace], shown: Sequence[int], columns: int, labels: Sequence[str]) -> None:
    """Draw a table of pictures: a row for each shown clip of each model, a column for each of `columns` states.

    A clip shows its first and its last frame. `labels` has a caption for every clip.
    """
    rows = len(shown) * len(traces)
    frames = [0] if traces[0].pixels.shape[2] == 1 else [0, traces[0].pixels.shape[2] - 1]
    figure = plots.figure(1.1 * columns * (0.6 if len(frames) == 1 else 1) + 0.8, 0.62 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        clip, record = shown[row // len(traces)], traces[row % len(traces)]
        # States lie closer together at the start, where the clips change most.
        chosen = [round((k / (columns - 1)) ** 1.5 * (len(record.states) - 1)) for k in range(columns)]
        for axes, place in zip(grid[row], chosen, strict=True):
            picture = record.pixels[place, clip][frames]
            gap = np.full((picture.shape[1], max(1, picture.shape[2] // 16), 3), PAPER, np.uint8)
            parts = [part for frame in picture for part in (frame, gap)][:-1]
            axes.imshow(np.concatenate(parts, axis=1), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{record.states[place] / record.settings['steps']:.0%}", fontsize=9)
        name = f"{record.name}\n{labels[clip]}" if len(traces) > 1 else labels[clip]
        grid[row][0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle("share of the steps" + (" (first and last frame)" if len(frames) > 1 else ""), fontsize=9)
    plots.save(figure, path)


def draw_film(path: Path, traces: Sequence[Trace], shown: Sequence[int], labels: Sequence[str]) -> None:
    """Draw a film of the shown clips while they descend: frames side by side, each above a bar of its gamma.

    There are no bars if the gamma of a model is unknown.
    """
    count = min(PICTURES, max(len(record.states) for record in traces))
    barred = all(record.gamma is not None for record in traces)
    clips, captions = [], []
    for clip in shown:
        for record in traces:
            places = [round(k * (len(record.states) - 1) / max(1, count - 1)) for k in range(count)]
            places += [len(record.states) - 1] * HOLD
            pixels = record.pixels[places, clip]  # (S,T,H,W,3)
            scale = max(1, WIDTH // (pixels.shape[1] * pixels.shape[3]))
            pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
            if barred:
                pixels = draw_gamma_bars(pixels, record.gamma[places, clip].numpy())
            clips.append(media.filmstrips(pixels)[:, 0])
            captions.append(f"{record.name}: {labels[clip]}" if len(traces) > 1 else labels[clip])
    media.write_gif(path, media.grid(np.stack(clips), captions, columns=1), FPS)
