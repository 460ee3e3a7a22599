"""Quality by the number of evaluations, sampler by sampler, on a model and on exact fields, with error bars.

Legend: K repeats, N clips of each, C ways to sample; h w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.core.decay import ConstantDecay, TruncatedDecay
from eqm_video.data.moving_shapes import DIRECTIONS, label_names
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Files, open_real
from eqm_video.evaluation.protocol import Protocol
from eqm_video.metrics.intervals import compare, estimate
from eqm_video.metrics.mmd import mmd
from eqm_video.options import option, same
from eqm_video.output import plots
from eqm_video.output.tables import by_number, with_interval
from eqm_video.randomness import generator
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Data, Guided, Many, Rendered, Seeded
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches, encode, labels_in_turn
from eqm_video.studies.few_steps import exact
from eqm_video.studies.forcing.measure import motion
from eqm_video.studies.forcing.ways import Way, nag, ways
from eqm_video.studies.measured import Measured
from eqm_video.studies.partial import Partial
from eqm_video.studies.quality import thinned
from eqm_video.studies.recipes import Trained
from eqm_video.studies.request import own_scale
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.tasks.clips import Truth, is_centred, names_of, said_centred
from eqm_video.wording import counted

REAL = 256  # real clips of the MMD
ELSEWHERE = 2_000_000  # added to the seed of the real clips
OWN = "nag own"  # the way of the model's own walk


@dataclass(frozen=True, kw_only=True)
class FewSteps(Opening, Rendered, Many, Data, Guided, Seeded, Batched, group="look"):
    """Quality by the number of evaluations of each sampler, with error bars.

    Models of one objective (EqM, EqF, flow matching) count as its training runs. Every sampler starts from the same
    noise, --repeats times with other seeds. `distance` is the RMS of latents from those of the reference: the model's
    own NAG walk with --reference evaluations, or multistep where the model has none. `mmd` is the squared maximum mean
    discrepancy of latents from those of at most 256 real clips, with `real` for as many real ones in place of samples.
    Models of moving shapes need no data: real clips are rendered, and `right` is the share of samples with the
    direction and the shape of their label. Other models take real clips from --data. NAG is there with several lengths
    of its walk. With --composed each clip is sampled with two labels at once that differ in the shape alone; `right`
    is then the share with their direction. The same samplers follow exact fields of 100 points. Finished measurements
    are reused.
    """

    models: tuple[str, ...] = same(Partial, "models")
    num_samples: int = 32
    repeats: int = option(3, least=1, most=100, metavar="K", help="repetitions, each with other seeds")
    evaluations: tuple[int, ...] = option(
        (1, 2, 3, 4, 6, 8, 12, 16, 24, 50), least=1, metavar="N", help="evaluations that are measured on the model"
    )
    reference: int = option(250, least=1, metavar="N", help="evaluations of the reference, and of a last multistep")
    composed: bool = option(False, help="two labels of one direction at once, in place of one")
    exact_starts: int = option(24, least=1, most=1000, metavar="N", help="starts on the exact fields, each repeat")
    exact_most: int = option(24, least=1, metavar="N", help="largest number of evaluations on the exact fields")
    again: bool = same(Trained, "again")

    def check(self) -> None:
        """UserError for --composed with --data."""
        if self.composed and self.data is not None:
            raise UserError(
                "--composed takes labels of moving shapes, and --data is for models of other videos: leave one out"
            )

    def paths(self) -> Sequence[str | Path]:
        """The models, each once."""
        return tuple(dict.fromkeys(self.models))

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables, by name."""
        return views(numbers)

    def run(self, *pipelines: EqMPipeline) -> Report:
        """Make missing measurements, on the models and then on the exact fields."""
        groups: dict[str, list[Measurer]] = {}
        for pipeline in pipelines:
            name = (pipeline.config.objective or {"name": "eqm"})["name"]
            groups.setdefault(name, []).append(Measurer(self, pipeline, f"{name}_{len(groups.get(name, []))}"))
        if len(counts := {len(group) for group in groups.values()}) > 1:
            raise UserError(f"the objectives have {sorted(counts)} models: give as many of each, run by run")
        first = next(iter(groups.values()))[0]
        numbers = {
            "settings": {
                "clips": self.num_samples,
                "repeats": self.repeats,
                "models": counts.pop(),
                "composed": self.composed,
                "seed": self.seed,
                "frames": first.pipeline.check_frames(),
                "guidance scale": first.scale,
                "reference": " / ".join(
                    dict.fromkeys(f"{group[0].reference}, {self.reference} evaluations" for group in groups.values())
                ),
                "exact starts": self.exact_starts,
                **({"centred": True} if self.data is None and first.centred else {}),
                **({} if self.data is None else {"real clips": len(first.real), "data": self.data.name}),
            },
            "models": {name: summary(group) for name, group in groups.items()},
            "real": {} if self.composed else first.floor(),
            "exact": self.exact([group[0] for group in groups.values()]),
        }
        tables = "\n\n".join(self.views(numbers).values())
        return Report(numbers, tables, pictures(numbers), {"few_steps.md": tables + "\n"})

    def exact(self, measurers: Sequence[Measurer]) -> dict[str, Any]:
        """The samplers on exact fields: an equilibrium's, a velocity's, told and not, and a composition's."""
        resting = [each for each in measurers if not isinstance(each.pipeline.decay, ConstantDecay)]
        decay, own = (resting[0].pipeline.decay, resting[0].ways) if resting else (TruncatedDecay(), {})
        velocity = ConstantDecay()
        listed = {"model": own or ways(decay), "velocity": ways(velocity), "flow": ways(velocity)}
        return exact.measure(
            {"model": decay, "velocity": velocity, "flow": velocity, "composed": decay},
            {**listed, "composed": listed["model"]},
            [count for count in self.evaluations if count <= self.exact_most],
            (self.repeats, self.exact_starts, self.seed),
            Measured(self.out, self.again),
        )


def summary(group: Sequence[Measurer]) -> dict[str, Any]:
    """Estimates of the models of one objective, by measure, way and number of evaluations, over runs and clips.

    "right against the reference" holds paired differences from it.
    """
    every = [measurer.all() for measurer in group]
    merged: dict[str, Any] = {}
    stacked = {
        (way, count, measure): torch.cat([torch.tensor(values[way][count][measure]) for values in every])
        for way, row in every[0].items()
        for count, cell in row.items()
        for measure in cell
    }
    reference = stacked.get((group[0].reference, str(group[0].study.reference), "right"))
    for (way, count, measure), values in stacked.items():
        merged.setdefault(measure, {}).setdefault(way, {})[count] = asdict(estimate(values.double()))
        if measure == "right":
            against = merged.setdefault("right against the reference", {}).setdefault(way, {})
            against[count] = asdict(compare(values, reference))
    return merged


class Measurer:
    """Measures a model, and keeps a file for each way and number of evaluations in OUT/measured/NAME."""

    def __init__(self, study: FewSteps, pipeline: EqMPipeline, name: str) -> None:
        self.study, self.pipeline, self.name = study, pipeline, name
        self.kept = Measured(study.out, study.again)
        known = set(pipeline.labels.values())
        if study.data is None and not (known and known <= set(label_names())):
            raise UserError(
                f"a model with {'other labels' if known else 'no labels'} was not trained on moving shapes: give real "
                "clips to measure it against, as --data FOLDER"
            )
        self.names = (names_of if study.data is None else labels_in_turn)(pipeline, study.num_samples)
        own = pipeline.config.sampler
        self.scale, self.centred = own_scale(study, pipeline), is_centred(study, pipeline)
        self.ways = dict(ways(pipeline.decay))
        if own["kind"] == "nag" and not isinstance(pipeline.decay, ConstantDecay):
            gain = float(getattr(pipeline.decay, "gain", 1.0))
            self.ways = {**self.ways, OWN: Way(OWN, nag(own["step_size"] * own["steps"] * gain, gain))}
        self.reference = OWN if OWN in self.ways else "multistep"

    def all(self) -> dict[str, dict[str, dict[str, list[list[float]]]]]:
        """Values (K, N) by way, number of evaluations and measure."""
        values: dict[str, dict[str, Any]] = {}
        for name, way in self.ways.items():
            for count in self.counts(name):
                if (how := way.sampling(count)) is not None:
                    values.setdefault(name, {})[str(count)] = self.measured(name, count, how)
        return values

    def counts(self, name: str) -> list[int]:
        """The numbers of evaluations of a way; only the reference and multistep get the reference's as well."""
        more = {self.study.reference} if name in (self.reference, "multistep") else set()
        return sorted({*self.study.evaluations, *more})

    def measured(self, name: str, count: int, how: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        """Values (K, N) of `right` (shapes) and `distance`, (K, 1) of `mmd`, of one way with `count` evaluations."""
        study = self.study
        keys = ("num_samples", "repeats", "seed")
        wanted = {
            "weights": fingerprint(self.pipeline),
            "scale": self.scale,
            **{key: getattr(study, key) for key in (*keys, "reference")},
            **({"composed": True} if study.composed else {}),
            **({"centred": True} if self.centred and study.data is None else {}),
            **({} if study.data is None else {"data": self.files.about["identity"]}),
        }

        def work() -> dict[str, list[list[float]]]:
            parts: dict[str, list[list[float]]] = {}
            for repeat in range(study.repeats):
                known = name == self.reference and count == study.reference
                latents = self.references[repeat] if known else self.sample(repeat, how)
                if study.data is None:
                    shown = motion(self.pipeline.decode(latents), self.truth)["direction" if study.composed else "both"]
                    parts.setdefault("right", []).append(shown)
                gaps = (latents - self.references[repeat]).square().flatten(1).mean(dim=1).sqrt()
                parts.setdefault("distance", []).append(gaps.tolist())
                if not study.composed:
                    parts.setdefault("mmd", []).append([mmd(latents.flatten(1), self.real)])
            return parts

        says = f"measuring {self.name}, {name}, {counted(count, 'evaluation')}"
        return self.kept.found(f"{self.name}/{name.replace(' ', '_')}_{count}", wanted, says, work)

    def sample(self, repeat: int, how: Mapping[str, Any]) -> Tensor:
        """The latents (N, T, C, h, w) of a repeat."""
        study = self.study
        seeds = [study.seed + repeat * study.num_samples + k for k in range(study.num_samples)]
        if study.composed:
            return self.sample_composed(seeds, how)
        made = []
        for part in batches(study.num_samples, study.batch_size):
            sampling = Sampling(guidance_scale=self.scale, **how)
            labels = self.names[part]
            made.append(self.pipeline.sample(sampling, labels, seeds=seeds[part], output_type="latent").frames)
        return torch.cat(made)

    def sample_composed(self, seeds: Sequence[int], how: Mapping[str, Any]) -> Tensor:
        """The latents (N, T, C, h, w) of seeds, each with half the guidance of its label and half of a label beside."""
        made: dict[int, Tensor] = {}
        for name in dict.fromkeys(self.names):
            places = [k for k, other in enumerate(self.names) if other == name]
            terms = [(label, self.scale / 2) for label in (name, self.partner(name))]
            for part in batches(len(places), self.study.batch_size):
                chosen = places[part]
                sampling = Sampling(composition=terms, **how)
                latents = self.pipeline.sample(
                    sampling, [None] * len(chosen), seeds=[seeds[k] for k in chosen], output_type="latent"
                ).frames
                made |= dict(zip(chosen, latents, strict=True))
        return torch.stack([made[k] for k in range(len(self.names))])

    def partner(self, name: str) -> str:
        """The next label of the model with the direction of `name`; UserError if it is the only one."""
        direction = next(way for way in DIRECTIONS if name.endswith(way))
        labels = [label for label in self.pipeline.labels.values() if label.endswith(direction)]
        if len(labels) < 2:
            raise UserError(f"--composed needs two labels of each direction, and {name} stands alone: leave it out")
        return labels[(labels.index(name) + 1) % len(labels)]

    def floor(self) -> dict[str, Any]:
        """The MMD of as many other real clips as samples; with --data, of random halves of the real clips."""
        study, values = self.study, []
        for repeat in range(study.repeats):
            if study.data is not None:
                draw = torch.randperm(len(self.real), generator=generator("halves", study.seed + repeat))
                half, rest = self.real[draw].tensor_split(2)
                values.append([mmd(half, rest)])
                continue
            seed = study.seed + ELSEWHERE + 1 + repeat
            values.append([mmd(self.encoded(self.names, seed), self.real)])
        return {"mmd": asdict(estimate(torch.tensor(values, dtype=torch.float64)))}

    def encoded(self, names: list[str], seed: int) -> Tensor:
        """Latents (M, D) of real clips with these labels."""
        frames, size = self.pipeline.check_frames(), self.pipeline.check_size()[0]
        clips = Truth.render(names, frames, size, seed, centred=self.centred).clips
        return encode(self.pipeline, clips, 32).flatten(1)

    @cached_property
    def files(self) -> Files:
        """The real clips of --data, at most `REAL`, evenly spread."""
        frames, size, fps = self.pipeline.check_frames(), self.pipeline.check_size(), float(self.pipeline.config.fps)
        protocol = Protocol(window="every", order="sorted", frames=frames, size=size)
        real = thinned(open_real(self.study.data, protocol, (frames, *size), fps, None), REAL)
        if len(real) < 4:
            raise UserError(
                f"--data {self.study.data} has {len(real)} clips of {frames} frames, and the MMD needs 4 at least: "
                "give more videos, or longer ones"
            )
        return real

    @cached_property
    def real(self) -> Tensor:
        """The latents (M, D) of the real clips."""
        if self.study.data is not None:
            clips = np.concatenate([self.files.read([row]).numpy() for row in range(len(self.files))])
            return encode(self.pipeline, clips, self.study.batch_size).flatten(1)
        return self.encoded(names_of(self.pipeline, REAL), self.study.seed + ELSEWHERE)

    @cached_property
    def truth(self) -> Truth:
        """The labels and shapes that `motion` compares with."""
        frames, size = self.pipeline.check_frames(), self.pipeline.check_size()[0]
        return Truth.render(self.names, frames, size, self.study.seed, centred=self.centred)

    @cached_property
    def references(self) -> list[Tensor]:
        """The latents (N, T, C, h, w) of the reference, of each repeat."""
        how = self.ways[self.reference].sampling(self.study.reference)
        print(
            f"sampling the reference, {self.reference} with {counted(self.study.reference, 'evaluation')}", flush=True
        )
        return [self.sample(repeat, how) for repeat in range(self.study.repeats)]


# Tables and picture ---------------------------------------------------------------------------------------------------

WALKS = {"nag": "NAG", "nag own": "NAG, the model's walk", "nag 2": "NAG, walk 2 / gain", "nag 6": "NAG, walk 6 / gain"}
FIELDS = {
    "model": "exact EqM, the model's decay",
    "velocity": "exact velocity (EqF)",
    "flow": "exact velocity, γ an input (flow)",
    "composed": "exact EqM, two conditions composed",
}
GROUPS = {"eqm": "EqM", "forcing": "EqF", "flow": "flow"}
DIGITS = {"right": None, "distance": 3, "mmd": 4}  # None: a share
MEASURES = {"right": "clips that show their label", "distance": "RMS from the reference", "mmd": "MMD² from real clips"}


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: right, distance, mmd, exact, settings."""
    settings, groups, named = numbers["settings"], numbers["models"], {}
    for measure, heading in MEASURES.items():
        rows: dict[str, Mapping[str, Any]] = {}
        for name, group in groups.items():
            rows |= _titled(group.get(measure, {}), f"{GROUPS.get(name, name)}, " if len(groups) > 1 else "")
        if rows:  # composed labels have no real clips to be compared with
            named[measure] = by_number(heading, rows, DIGITS[measure])
    if numbers["real"]:
        floor = "Random halves of the real clips" if "data" in settings else "As many real clips"
        named["mmd"] += f"\n\n{floor}: {with_interval(numbers['real']['mmd'], DIGITS['mmd'])}."
    parts = [by_number(FIELDS[field], _titled(numbers["exact"][field]["reached"]), None) for field in numbers["exact"]]
    named["exact"] = "\n\n".join(parts)
    runs = f"{settings['models']} training runs of each objective, " if settings["models"] > 1 else ""
    data = f", against {settings['real clips']} of {settings['data']}" if "data" in settings else ""
    labels = "two labels of one direction composed, whose direction is what counts, " if settings["composed"] else ""
    named["settings"] = (
        f"{runs}{settings['repeats']} × {settings['clips']} clips{data}, {labels}guidance "
        f"{settings['guidance scale']:g}; the reference is {settings['reference']}; on the exact fields "
        f"{settings['repeats']} × {settings['exact starts']} starts. "
        f"Intervals are 95 %, over runs, repeats and clips.{said_centred(settings)}"
    )
    return named


def _titled(rows: Mapping[str, Mapping[str, Any]], group: str = "") -> dict[str, Mapping[str, Any]]:
    """The rows of ways by what tables call these; `group` stands before."""
    return {group + title(way): row for way, row in rows.items()}


def title(way: str) -> str:
    """A way in words."""
    return WALKS.get(way, way)


def pictures(numbers: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The picture by its file name."""
    return {"few_steps.png": partial(draw, numbers)}


def draw(numbers: Mapping[str, Any], path: Path) -> Path:
    """A row of panels for each objective, a panel a measure, and one for the exact fields; intervals as bands."""
    groups, exact = numbers["models"], numbers["exact"]
    several = len(groups) > 1
    rows = [
        [
            (group[key], key, f"{GROUPS.get(name, name)}: {heading}" if several else heading)
            for key, heading in MEASURES.items()
            if key in group
        ]
        for name, group in groups.items()
    ]
    curves = {key: values["reached"] for key, values in exact.items() if len(values["reached"]["multistep"]) > 1}
    rows += [[(curve, "right", FIELDS[key]) for key, curve in curves.items()]] if curves else []
    columns = max(map(len, rows))
    figure = plots.figure(3.2 * columns, 2.5 * len(rows) + 0.4)
    ways = list(dict.fromkeys(name for row in rows for lines, *_ in row for name in lines))
    for line, row in enumerate(rows):
        for column, (lines, measure, heading) in enumerate(row):
            scales = {"xscale": "log"} | ({"yscale": "log"} if measure == "distance" else {})
            axes = plots.axes(figure, len(rows), columns, line * columns + column + 1, **scales)
            axes.set_title(heading, fontsize=9)
            axes.set_xlabel("evaluations")
            for name, cells in lines.items():
                if measure == "distance":  # the reference's is 0, which a log scale does not show
                    cells = {count: cell for count, cell in cells.items() if cell["mean"] > 0}
                plots.band(axes, cells, label=title(name), markersize=4, **plots.style(ways.index(name)))
            plots.ticks_1_2_5(axes.xaxis)
            if measure == "right":
                axes.set_ylim(-0.02, 1.02)
            if measure == "mmd" and numbers["real"]:
                axes.axhline(numbers["real"]["mmd"]["mean"], color=plots.GREY, linestyle=":")
    drawn = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        drawn.values(),
        drawn.keys(),
        loc="outside lower center",
        ncols=4 if columns > 2 else 2,
        frameon=False,
        fontsize=9,
    )
    return plots.save(figure, path)
