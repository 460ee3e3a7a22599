"""Distil a model: a student that goes where the teacher's descent rests, measured against the teacher.

Legend: N clips, T frames, C h w latents, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.data.moving_shapes import label_names
from eqm_video.metrics.intervals import compare, estimate
from eqm_video.options import narrower, option, same
from eqm_video.output import plots
from eqm_video.output.tables import by_number
from eqm_video.sampling.option_groups import Batched, Guided, Many, Seeded
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches, labels_in_turn
from eqm_video.studies.distill.paths import Paths
from eqm_video.studies.distill.student import Fit, rest_error, train, untrained
from eqm_video.studies.forcing.measure import motion
from eqm_video.studies.request import own_scale
from eqm_video.studies.study import OneModel, Report
from eqm_video.studies.tasks.clips import Truth
from eqm_video.studies.train_codec import TrainCodec
from eqm_video.system import files, waits
from eqm_video.system.reading import asset

MEASURED = 10**7  # added to the seed of the clips that are measured: no path of the training has their noise
WAYS = {"student": "student", "teacher": "teacher, multistep"}
MEASURES = {"right": "clips that show their label", "distance": "RMS from the teacher's reference"}


@dataclass(frozen=True, kw_only=True)
class Distill(OneModel, Many, Guided, Seeded, Batched, group="use"):
    """Train a student that goes in a few evaluations to where a model's descent rests, and measure it.

    The student f learns from the model (its teacher) alone that x - f(x) is the point where the teacher's descent from
    x rests. The states and their rests are those of descents from --noises, with every label in turn and with none.
    Half of the states first go a step of the student, so that it learns to mend its own results. The teacher's guidance
    is learned too, and costs the student nothing. DIR/export is a model like any other, which samples with --steps 1, 2
    or 4. It is measured beside the teacher's multistep sampler from the same new noise: the RMS of latents from the
    teacher's result of --reference evaluations, and for moving shapes the share of clips that show their label. An
    interrupted training begins again.
    """

    noises: int = option(1024, least=2, most=10**6, metavar="N", help="noises that the teacher descends from")
    path_steps: int = option(16, least=2, most=1000, metavar="S", help="multistep steps of each")
    fit_steps: int = option(1500, least=1, metavar="N", help="training steps of the student")
    batch: int = option(32, least=4, metavar="B", help="states in a training step")
    lr: float = same(TrainCodec, "lr")
    evaluations: tuple[int, ...] = option((1, 2, 4, 8), least=1, metavar="N", help="evaluations that are measured")
    reference: int = option(50, least=2, metavar="N", help="multistep steps of the teacher's reference")
    num_samples: int = narrower(64, least=2)

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables by name: results, settings."""
        return views(numbers)

    def run(self, teacher: EqMPipeline) -> Report:
        """Descend with the teacher, train the student, write it, and measure both."""
        teacher.set_progress_bar_config(disable=True)
        scale = own_scale(self, teacher)
        student = untrained(teacher, steps=2)
        names = list(teacher.labels.values())
        wanted = [[*names, None][k % (len(names) + 1)] for k in range(self.noises)]
        seeds = [self.seed + k for k in range(self.noises)]
        how = Sampling(sampler="multistep", steps=self.path_steps, guidance_scale=scale)
        paths = Paths.of_model(teacher, wanted, seeds, how, self.batch_size)
        losses = train(student, paths, Fit(self.fit_steps, self.batch, self.lr, self.seed))
        labels = labels_in_turn(teacher, self.num_samples)
        numbers = {
            "settings": {
                "descents": self.noises,
                "path steps": self.path_steps,
                "fit steps": self.fit_steps,
                "rows": self.batch,
                "clips": self.num_samples,
                "seed": self.seed,
                "guidance scale": scale,
                "reference": f"multistep, {self.reference} evaluations",
            },
            "loss": {"first": losses[0], "last": sum(losses[-20:]) / len(losses[-20:])},
            **self.measured(teacher, student, labels, scale),
        }
        with files.writing_folder(self.out / "export") as folder:
            student.save_pretrained(folder)
            files.write_text(
                folder / "README.md",
                asset("cards/distilled.md").format(table=views(numbers)["results"], paths=self.noises),
            )
        return Report(numbers, "\n\n".join(views(numbers).values()), {"distill.png": partial(draw, numbers)})

    def measured(
        self, teacher: EqMPipeline, student: EqMPipeline, labels: Sequence[str | None], scale: float
    ) -> dict[str, Any]:
        """Estimates by measure, way and number of evaluations, and paired differences, student less teacher."""
        seeds = [self.seed + MEASURED + k for k in range(len(labels))]
        ways = {
            "student": lambda count: (student, Sampling(steps=count)),
            "teacher": lambda count: (teacher, Sampling(sampler="multistep", steps=count, guidance_scale=scale)),
        }
        goal = self.sample(*ways["teacher"](self.reference), labels, seeds)
        values: dict[str, dict[str, dict[str, Tensor]]] = {}
        for way, build in waits.bar(ways.items(), "measuring", unit="way"):
            for count in sorted({*self.evaluations, *([self.reference] if way == "teacher" else [])}):
                latents = self.sample(*build(count), labels, seeds)
                for name, each in self.of_clips(teacher, latents, goal, labels).items():
                    values.setdefault(name, {}).setdefault(way, {})[str(count)] = each[None].double()
        rests = rest_error(student, goal[: self.batch_size], labels[: self.batch_size])
        return {
            "found": {
                name: {way: {count: asdict(estimate(each)) for count, each in row.items()} for way, row in rows.items()}
                for name, rows in values.items()
            },
            "student less teacher": {
                name: {
                    count: asdict(compare(rows["student"][count], rows["teacher"][count])) for count in rows["student"]
                }
                for name, rows in values.items()
            },
            "step at the teacher's rests": asdict(estimate(rests[None].double())),
        }

    def sample(
        self, pipeline: EqMPipeline, how: Sampling, labels: Sequence[str | None], seeds: Sequence[int]
    ) -> Tensor:
        """Latents (N, T, C, h, w)."""
        parts = batches(len(labels), self.batch_size)
        made = [pipeline.sample(how, labels[part], seeds=seeds[part], output_type="latent").frames for part in parts]
        return torch.cat(made)

    def of_clips(
        self, teacher: EqMPipeline, latents: Tensor, goal: Tensor, labels: Sequence[str | None]
    ) -> dict[str, Tensor]:
        """By measure a value for each clip (N,): distance, and right for clips of moving shapes."""
        values = {"distance": (latents - goal).square().flatten(1).mean(dim=1).sqrt().cpu()}
        if labels[0] is not None and set(labels) <= set(label_names()) and teacher.check_frames() > 1:
            truth = Truth.render(list(labels), teacher.check_frames(), teacher.check_size()[0], self.seed)
            values = {"right": torch.tensor(motion(teacher.decode(latents), truth)["both"]), **values}
        return values


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: results, settings."""
    blocks = []
    for name, heading in MEASURES.items():
        if name not in numbers["found"]:
            continue
        rows = {WAYS[way]: row for way, row in numbers["found"][name].items()}
        blocks.append(by_number(heading, rows, None if name == "right" else 3))
    settings = numbers["settings"]
    said = (
        f"{settings['clips']} clips; the student learned from {settings['descents']} descents in "
        f"{settings['fit steps']} steps of {settings['rows']} states; guidance of the teacher "
        f"{settings['guidance scale']:g}; the reference is "
        f"{settings['reference']}. Intervals are 95 %, over clips; one training run."
    )
    return {"results": "\n\n".join(blocks), "settings": said}


def draw(numbers: Mapping[str, Any], path: Path) -> Path:
    """A panel for each measure: student and teacher by the number of evaluations, intervals as bands."""
    shown = [name for name in MEASURES if name in numbers["found"]]
    figure = plots.figure(3.8 * len(shown), 3.0)
    for place, name in enumerate(shown, start=1):
        axes = plots.axes(figure, 1, len(shown), place, xscale="log", xlabel="evaluations")
        axes.set_title(MEASURES[name], fontsize=10)
        for index, (way, row) in enumerate(numbers["found"][name].items()):
            plots.band(axes, row, label=WAYS[way], **plots.style(index))
        axes.set_ylim(bottom=0)
        plots.ticks_1_2_5(axes.xaxis)
        plots.legend(axes)
    return plots.save(figure, path)
