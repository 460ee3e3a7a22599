"""Quality by the number of evaluations, sampler by sampler, on a model and on exact fields, with error bars.

Legend: K repeats, N clips of each, C ways to sample; h w latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eqm_video.core.decay import ConstantDecay
from eqm_video.metrics.intervals import compare, estimate
from eqm_video.metrics.mmd import mmd
from eqm_video.options import option, same
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Guided, Many, Seeded
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches, encode
from eqm_video.studies.few_steps import exact, report
from eqm_video.studies.forcing.measure import motion
from eqm_video.studies.forcing.ways import Way, nag, ways
from eqm_video.studies.measured import Measured
from eqm_video.studies.recipes import Trained
from eqm_video.studies.study import OneModel, Report
from eqm_video.studies.tasks.clips import Truth, names_of

REAL = 256  # real clips of the MMD
ELSEWHERE = 2_000_000  # added to the seed of the real clips
OWN = "nag own"  # the way of the model's own walk


@dataclass(frozen=True, kw_only=True)
class FewSteps(OneModel, Many, Guided, Seeded, Batched, group="look"):
    """Quality by the number of evaluations of each sampler, with error bars.

    The model was trained on moving shapes, whose labels can be measured in closed form. Every sampler starts from the
    same noise, --repeats times with other seeds. `right` is the share of clips with the direction and the shape of
    their label, `distance` the RMS of latents from those of the reference (the model's own NAG walk with --reference
    evaluations, or multistep where the model has none), `mmd` the squared maximum mean discrepancy of latents from
    those of 256 real clips, with `real` for as many real ones in place of samples. NAG is there with several lengths
    of its walk. The same samplers then follow the exact fields of 100 random points. Finished measurements are reused.
    """

    num_samples: int = 32
    repeats: int = option(3, least=1, most=100, metavar="K", help="times, each with seeds of its own")
    evaluations: tuple[int, ...] = option(
        (1, 2, 3, 4, 6, 8, 12, 16, 24, 50), least=1, metavar="N", help="of the field, on the model"
    )
    reference: int = option(250, least=1, metavar="N", help="evaluations of the reference, and of a last multistep")
    exact_starts: int = option(24, least=1, most=1000, metavar="N", help="starts on the exact fields, each repeat")
    exact_most: int = option(24, least=1, metavar="N", help="largest number of evaluations on the exact fields")
    again: bool = same(Trained, "again")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables, by name."""
        return report.views(numbers)

    def run(self, pipeline: EqMPipeline) -> Report:
        """Make missing measurements, on the model and then on the exact fields."""
        measurer = Measurer(self, pipeline)
        reached = exact.measure(
            {"model": pipeline.decay, "velocity": ConstantDecay()},
            {"model": measurer.ways, "velocity": ways(ConstantDecay())},
            [count for count in self.evaluations if count <= self.exact_most],
            (self.repeats, self.exact_starts, self.seed),
            Measured(self.out, self.again),
        )
        numbers = {
            "settings": {
                "clips": self.num_samples,
                "repeats": self.repeats,
                "seed": self.seed,
                "frames": pipeline.check_frames(),
                "guidance scale": measurer.scale,
                "reference": f"{measurer.reference}, {self.reference} evaluations",
                "exact starts": self.exact_starts,
            },
            **measurer.all(),
            "exact": reached,
        }
        tables = "\n\n".join(self.views(numbers).values())
        return Report(numbers, tables, report.pictures(numbers), {"few_steps.md": tables + "\n"})


class Measurer:
    """Measures a model, and keeps a file for each way and number of evaluations in OUT/measured."""

    def __init__(self, study: FewSteps, pipeline: EqMPipeline) -> None:
        self.study, self.pipeline = study, pipeline
        self.kept = Measured(study.out, study.again)
        self.names = names_of(pipeline, study.num_samples)
        own = pipeline.config.sampler
        self.scale = own["guidance_scale"] if study.guidance_scale is None else study.guidance_scale
        self.ways = dict(ways(pipeline.decay))
        if own["kind"] == "nag" and not isinstance(pipeline.decay, ConstantDecay):
            gain = float(getattr(pipeline.decay, "gain", 1.0))
            self.ways = {**self.ways, OWN: Way(OWN, nag(own["step_size"] * own["steps"] * gain, gain))}
        self.reference = OWN if OWN in self.ways else "multistep"

    def all(self) -> dict[str, Any]:
        """Estimates by measure, way and number of evaluations, and differences from the reference."""
        values: dict[str, dict[str, dict[str, Any]]] = {}
        for name, way in self.ways.items():
            for count in self.counts(name):
                if (how := way.sampling(count)) is not None:
                    values.setdefault(name, {})[str(count)] = self.measured(name, count, how)
        model: dict[str, Any] = {}
        for name, row in values.items():
            for count, cell in row.items():
                for measure, lists in cell.items():
                    means = asdict(estimate(torch.tensor(lists, dtype=torch.float64)))
                    model.setdefault(measure, {}).setdefault(name, {})[count] = means
        right = torch.tensor(values[self.reference][str(self.study.reference)]["right"])
        against = {
            name: {count: asdict(compare(torch.tensor(cell["right"]), right)) for count, cell in row.items()}
            for name, row in values.items()
        }
        return {"model": model, "right against the reference": against, "real": self.floor()}

    def counts(self, name: str) -> list[int]:
        """The numbers of evaluations of a way; only the reference and multistep get the reference's as well."""
        more = {self.study.reference} if name in (self.reference, "multistep") else set()
        return sorted({*self.study.evaluations, *more})

    def measured(self, name: str, count: int, how: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        """Values (K, N) of `right` and `distance`, (K, 1) of `mmd`, of one way with `count` evaluations."""
        study = self.study
        keys = ("num_samples", "repeats", "seed")
        wanted = {
            "weights": fingerprint(self.pipeline),
            "scale": self.scale,
            **{key: getattr(study, key) for key in (*keys, "reference")},
        }

        def work() -> tuple[dict[str, Any], None]:
            print(f"measuring {name}, {count} evaluations", flush=True)
            parts: dict[str, list[list[float]]] = {"right": [], "distance": [], "mmd": []}
            for repeat in range(study.repeats):
                known = name == self.reference and count == study.reference
                latents = self.references[repeat] if known else self.sample(repeat, how)
                clips = self.pipeline.decode(latents)
                gaps = (latents - self.references[repeat]).square().flatten(1).mean(dim=1).sqrt()
                parts["right"].append(motion(clips, self.truth)["both"])
                parts["distance"].append(gaps.tolist())
                parts["mmd"].append([mmd(latents.flatten(1), self.real)])
            return {"found": parts}, None

        return self.kept.keep(f"{name.replace(' ', '_')}_{count}", wanted, work)["found"]

    def sample(self, repeat: int, how: Mapping[str, Any]) -> Tensor:
        """The latents (N, T, C, h, w) of a repeat."""
        study, made = self.study, []
        for part in batches(study.num_samples, study.batch_size):
            seeds = [study.seed + repeat * study.num_samples + k for k in range(part.start, part.stop)]
            sampling = Sampling(guidance_scale=self.scale, **how)
            made.append(self.pipeline.sample(sampling, self.names[part], seeds=seeds, output_type="latent").frames)
        return torch.cat(made)

    def floor(self) -> dict[str, Any]:
        """The MMD of as many other real clips as samples."""
        study, values = self.study, []
        for repeat in range(study.repeats):
            seed = study.seed + ELSEWHERE + 1 + repeat
            values.append([mmd(self.encoded(self.names, seed), self.real)])
        return {"mmd": asdict(estimate(torch.tensor(values, dtype=torch.float64)))}

    def encoded(self, names: list[str], seed: int) -> Tensor:
        """Latents (M, D) of real clips with these labels."""
        frames, size = self.pipeline.check_frames(), self.pipeline.check_size()[0]
        return encode(self.pipeline, Truth.render(names, frames, size, seed).clips, 32).flatten(1)

    @cached_property
    def real(self) -> Tensor:
        """The latents (M, D) of the real clips."""
        return self.encoded(names_of(self.pipeline, REAL), self.study.seed + ELSEWHERE)

    @cached_property
    def truth(self) -> Truth:
        """The labels and shapes that `motion` compares with."""
        return Truth.render(self.names, self.pipeline.check_frames(), self.pipeline.check_size()[0], self.study.seed)

    @cached_property
    def references(self) -> list[Tensor]:
        """The latents (N, T, C, h, w) of the reference, of each repeat."""
        how = self.ways[self.reference].sampling(self.study.reference)
        print(f"sampling the reference, {self.reference} with {self.study.reference} evaluations", flush=True)
        return [self.sample(repeat, how) for repeat in range(self.study.repeats)]
