"""Held-out clips are mixed with noise and sampled from there; the study measures how much of each clip is kept.

Legend: N clips, T frames, C latent channels, H W pixels, h w latents; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import ConstantDecay
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import SHAPES, label_names, score_motion
from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.metrics.psnr import psnr
from eqm_video.options import narrower, option, same
from eqm_video.output import media, plots
from eqm_video.output.grids import PAPER
from eqm_video.samplers import DivergenceError, Sampler, knows_gamma, run
from eqm_video.sampling.arguments import default_steps, make_generators, step_gammas
from eqm_video.sampling.option_groups import SPLIT, Batched, ClipLabels, Guided, HeldOut, Seeded
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches, encode
from eqm_video.studies.request import describe_rule, lists_of, split_of
from eqm_video.studies.study import Opening, Report
from eqm_video.system import waits

MOVING_SHAPES = frozenset(label_names())


@dataclass(frozen=True)
class Variant:
    """A curve: a model, and the gamma that it gets: none ("nothing"), that of the start ("the start"), or "0"."""

    name: str
    pipeline: EqMPipeline
    sampler: Sampler
    told: str


@dataclass(frozen=True)
class Pairs:
    """Clean latents and noise, both (N, T, C, h, w), to be mixed into starts, and the generators of the noise."""

    clean: Tensor
    noise: Tensor
    generators: list[Generator]

    @classmethod
    def of(cls, pipeline: EqMPipeline, clips: Clips, seed: int, batch_size: int) -> Pairs:
        """The pairs of some clips, encoded by a model's codec. The noise of clip k is that of seed + k."""
        count, frames, *size = clips.pixels.shape[:4]
        generators = make_generators(count, range(seed, seed + count), None)
        noise = pipeline.start_noise(generators, num_frames=frames, size=tuple(size))
        return cls(encode(pipeline, clips.pixels, batch_size), noise, generators)

    def start(self, gamma: float) -> Tensor:
        """The starts at `gamma`: gamma·clean + (1 - gamma)·noise."""
        return interpolate(self.clean, self.noise, self.clean.new_full(self.clean.shape[:2], gamma))


@dataclass(frozen=True, kw_only=True)
class Partial(Opening, HeldOut, ClipLabels, Guided, Seeded, Batched, group="look"):
    """Denoise clips that start between noise and data.

    Held-out clips are mixed with noise, x = gamma·clip + (1 - gamma)·noise, and sampled from there. An equilibrium
    needs no gamma: it descends from any start. A flow is integrated from its start to 1 and needs the gamma of that
    start, so a flow model has two curves: with the right gamma, and with 0, as if every start were noise.

    Measured against the clip are the RMS of the latents' difference, the PSNR of the pixels, and, for moving shapes,
    the shares of results that keep the clip's motion and its shape. Without --labels given the model gets no label, so
    that everything kept comes from the start. References are the start itself, another held-out clip, and the codec
    alone.

    --steps holds for every descent, whatever its start. --guidance-scale matters only with --labels given.
    """

    models: tuple[str, ...] = option(
        positional=True, metavar="MODEL", help="exports, training runs or checkpoints, or hub ids"
    )
    labels: str | None = narrower(
        "none",
        choices=("none", "given"),
        help="condition on nothing, or on the clips' labels, all of which the model must know",
    )
    clips: int = narrower(64, least=2)
    steps: int | None = same(Sampling, "steps", least=1)
    start_gammas: tuple[float, ...] = option(
        (0.0, 0.2, 0.4, 0.6, 0.8), least=0, below=1, metavar="G", help="gammas of the starts: 0 = noise"
    )

    def paths(self) -> Sequence[str | Path]:
        """The models, each once."""
        return tuple(dict.fromkeys(self.models))

    def run(self, *models: EqMPipeline) -> Report:
        """Mix, sample and measure, for every model and every start."""
        pipelines = dict(zip(self.paths(), models, strict=True))
        starts = sorted(set(self.start_gammas))
        split = split_of(self.split, self.data, SPLIT)
        source = self.open_source(models, split)
        clips = source.read()
        labels = labels_for(self.labels, clips, models)
        pairs = {path: Pairs.of(model, clips, self.seed, self.batch_size) for path, model in pipelines.items()}
        measured, shown = {}, {}
        for path, variant in variants(pipelines):
            rows = []
            for gamma in waits.bar(starts, variant.name, unit="start"):
                latents = denoise(variant, pairs[path], labels, gamma, self)
                pixels = variant.pipeline.decode(latents)
                rows.append(measure(clips, pixels, latents, pairs[path].clean))
                shown[variant.name, gamma] = pixels[0]
            measured[variant.name] = rows
        ours = pairs[self.paths()[0]]
        for gamma in starts:
            pixels = models[0].decode(ours.start(gamma))
            measured.setdefault(START, []).append(measure(clips, pixels, ours.start(gamma), ours.clean))
            shown[START, gamma] = pixels[0]
        numbers = {
            "settings": self.settings(pipelines, source, split, len(labels)),
            "start_gammas": starts,
            "measured": measured,
            "references": references(models[0], clips, ours.clean),
        }
        pictures = {
            "partial.png": lambda path: draw_curves(numbers, path),
            "partial_examples.png": lambda path: draw_examples(clips.pixels[0], shown, path),
        }
        return Report(numbers, table(numbers), pictures)

    def open_source(self, models: Sequence[EqMPipeline], split: str) -> Source:
        """The held-out clips; UserError if models differ in frames, size or rate."""
        shapes = {(model.check_frames(), model.check_size(), model.config.fps) for model in models}
        if len(shapes) > 1:
            raise UserError(
                f"the models were trained on different clips (frames, size, fps): {sorted(shapes)}; give models of "
                "the same clips"
            )
        ((frames, size, fps),) = shapes
        shape = {"frames": frames, "size": size, "fps": fps, "frame_interval": self.frame_interval}
        return Source(self.data, count=self.clips, **shape, **lists_of(split, self.fold))

    def settings(self, pipelines: Mapping[str, EqMPipeline], source: Source, split: str, count: int) -> dict[str, Any]:
        """The settings for the record; `count` is the number of clips."""
        return {
            "models": {
                path: {
                    "decay": variant.pipeline.config.decay,
                    "told_gamma": variant.pipeline.transformer.config.conditioned_on_gamma,
                    "sampler": describe_rule(variant.sampler),
                    "steps": self.steps or default_steps(variant.pipeline.config.sampler, variant.sampler),
                }
                for path, variant in variants(pipelines)
            },
            "data": str(self.data),
            "split": split,
            "clips": count,
            "frames": source.frames,
            "frame_interval": source.data.frame_interval,
            "labels": self.labels,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
        }


# Models and clips ---------------------------------------------------------------------------------------------------


def labels_for(mode: str, clips: Clips, pipelines: Sequence[EqMPipeline]) -> list[str | None]:
    """The clips' labels ("given"), or None for each ("none"); UserError for a label unknown to a model."""
    if mode == "none":
        return [None] * len(clips.labels)
    for pipeline in pipelines:
        if unknown := sorted({str(label) for label in clips.labels} - set(pipeline.labels.values())):
            raise UserError(f"a model does not know the label {unknown[0]!r} of the data: type --labels none")
    return clips.labels


def variants(pipelines: Mapping[str, EqMPipeline]) -> list[tuple[str, Variant]]:
    """(path of the model, curve) for each curve. A flow whose own sampler is a descent is integrated by Euler."""
    kinds = {path: "FM" if isinstance(model.decay, ConstantDecay) else "EqM" for path, model in pipelines.items()}
    curves = []
    for path, pipeline in pipelines.items():
        kind, sampler = kinds[path], pipeline.rule()
        name = kind if list(kinds.values()).count(kind) == 1 else f"{kind} {path}"
        if kind == "FM" and not knows_gamma(sampler):
            sampler = pipeline.rule("euler")
        knows = knows_gamma(sampler) or pipeline.transformer.config.conditioned_on_gamma
        for condition in ("the start", "0") if knows else ("nothing",):
            curves.append((path, Variant(f"{name}, told {condition}", pipeline, sampler, condition)))
    return curves


# Sampling and measuring ---------------------------------------------------------------------------------------------


@torch.no_grad()
def denoise(variant: Variant, pairs: Pairs, labels: Sequence[str | None], gamma: float, options: Partial) -> Tensor:
    """Sample from the start at `gamma`, in batches: latents (N, T, C, h, w).

    The result equals that of `pipeline(labels, clips=..., start_gamma=gamma)`, except for a variant with the wrong
    gamma. `options` give steps, guidance_scale and batch_size. UserError if the descent diverges.
    """
    pipeline, sampler, start, ends = variant.pipeline, variant.sampler, pairs.start(gamma), []
    steps = options.steps or default_steps(pipeline.config.sampler, sampler)
    passed, gammas = 0.0 if variant.told == "0" else gamma, None
    if pipeline.transformer.config.conditioned_on_gamma:
        gammas = step_gammas(pipeline.decay, sampler, steps, "constant", passed, None)
    for rows in waits.bar(batches(len(start), options.batch_size), "descending", unit="batch"):
        field = pipeline.field(list(labels[rows]), num_frames=start.shape[1], guidance_scale=options.guidance_scale)
        scheduled = ScheduledField(field, steps, gammas)
        generators = [source.clone_state() for source in pairs.generators[rows]]  # every start gets the same noise
        how = {"steps": steps, "start_gamma": passed, "generators": generators, "decay": pipeline.decay}
        try:
            ends.append(run(scheduled, start[rows], sampler, **how).latents)
        except DivergenceError as error:
            raise UserError(f"{variant.name}, from gamma {gamma:g}: {error}") from error
    return torch.cat(ends)


def measure(clips: Clips, pixels: np.ndarray, latents: Tensor, clean: Tensor) -> dict[str, float]:
    """Means over the clips: latent RMS, PSNR in dB of 8-bit pixels, and shares with the label's motion and shape."""
    numbers = {
        "rms": float((latents - clean).square().mean(dim=(1, 2, 3, 4)).sqrt().mean()),
        "psnr": float(psnr(torch.from_numpy(pixels), torch.from_numpy(clips.pixels), span=255, dims=4).mean()),
    }
    if MOVING_SHAPES.issuperset(clips.labels):
        shapes = [shape for shape in SHAPES if any(label.startswith(shape) for label in clips.labels)]
        shares = score_motion(pixels, clips.labels, shapes)
        numbers |= {"motion": float(shares["direction_accuracy"]), "shape": float(shares["shape_accuracy"])}
    return numbers


def references(pipeline: EqMPipeline, clips: Clips, clean: Tensor) -> dict[str, dict[str, float]]:
    """The measures of the codec alone, and of another clip, with another label if there is one."""
    other = clips.partners(0)
    return {
        "codec alone": measure(clips, pipeline.decode(clean), clean, clean),
        "another clip": measure(clips, clips.pixels[other], clean[other], clean),
    }


# Table and pictures ---------------------------------------------------------------------------------------------------

START = "the start itself"
TITLES = {
    "rms": "RMS to the clip's latents",
    "psnr": "PSNR to the clip (dB)",
    "motion": "share whose motion is kept",
    "shape": "share whose shape is kept",
}
FORMATS = {"rms": "{:.3f}", "psnr": "{:.1f}", "motion": "{:.0%}", "shape": "{:.0%}"}
FRAMES = 4  # frames of a clip in the picture of examples


def table(numbers: Mapping[str, Any]) -> str:
    """The curves as text for the screen, a block for each measure."""
    gammas, measured, lines = numbers["start_gammas"], numbers["measured"], []
    for key in (key for key in TITLES if key in measured[START][0]):
        lines.append(_row(f"{TITLES[key]}, from gamma", *(f"{gamma:g}" for gamma in gammas)))
        for name, rows in measured.items():
            lines.append(_row(f"  {name}", *(FORMATS[key].format(row[key]) for row in rows)))
        references = (f"{name} {FORMATS[key].format(row[key])}" for name, row in numbers["references"].items())
        lines += [f"  ({', '.join(references)})", ""]
    return "\n".join(lines[:-1])


def draw_curves(numbers: Mapping[str, Any], out: Path) -> None:
    """Draw a panel for each measure: curves over the start, with the start itself and other references in grey."""
    measured, references = numbers["measured"], numbers["references"]
    keys = [key for key in TITLES if key in measured[START][0]]
    rows = (len(keys) + 1) // 2
    figure = plots.figure(6.4, 0.8 + 2.6 * rows)
    for place, key in enumerate(keys, start=1):
        axes = plots.axes(figure, rows, 2, place, title=TITLES[key])
        axes.set_xlabel("gamma of the start" if place > len(keys) - 2 else "")
        for index, (name, values) in enumerate(measured.items()):
            look = {"color": plots.GREY, "linestyle": "--"} if name == START else plots.style(index)
            axes.plot(numbers["start_gammas"], [row[key] for row in values], label=name, markersize=5, **look)
        for (name, row), line in zip(references.items(), (":", "-."), strict=True):
            axes.axhline(row[key], color=plots.GREY, linestyle=line, linewidth=1, label=name)
        if key in ("motion", "shape"):
            axes.set_ylim(-0.03, 1.03)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, out)


def draw_examples(clip: np.ndarray, shown: Mapping[tuple[str, float], np.ndarray], out: Path) -> None:
    """Draw a clip (T, H, W, 3), and below it a row for each start: the start, and the result of every variant.

    A few frames of each clip are shown.
    """
    names = sorted(dict.fromkeys(name for name, _ in shown), key=lambda name: name != START)
    gammas = list(dict.fromkeys(gamma for _, gamma in shown))
    frames = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    clips = [clip] + [np.full_like(clip, PAPER)] * (len(names) - 1)
    blank = (" " * k for k in range(1, len(names)))  # all different: equal captions would be joined
    captions = ["held-out clip", *blank]
    for gamma in gammas:
        clips += [shown[name, gamma] for name in names]
        captions += [f"gamma {gamma:g}: {'start' if name == START else name}" for name in names]
    strips = media.filmstrips(np.stack(clips)[:, frames])
    scale = max(1, round(64 / strips.shape[2]))
    media.write_png(out, media.grid(strips, captions, len(names), scale)[0])


def _row(text: str, *values: str) -> str:
    return f"{text:40}" + "".join(f"{value:>9}" for value in values)
