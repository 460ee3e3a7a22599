"""The comparison of EqM, EqF and flow matching: the same network, data and effort for each, several runs of each.

Legend: N clips, S runs (seeds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError
from eqm_video.options import narrower, option, same
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Guided, HeldOut, Measuring, Seeded
from eqm_video.sampling.options import Longer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.demo import write_videos
from eqm_video.studies.forcing import measure, report, results
from eqm_video.studies.forcing.ways import ways
from eqm_video.studies.measured import Measured
from eqm_video.studies.quality import Judge, check_evaluation, chosen_metrics, feature_name
from eqm_video.studies.recipes import Recipes, Trained, Variant
from eqm_video.studies.request import Request, open_model, own_scale
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.tasks import short as tasks_short
from eqm_video.studies.tasks.clips import Truth, names_of
from eqm_video.studies.tasks.short import Setting, Task
from eqm_video.studies.tasks.study import Tasks

RECIPES = Recipes("forcing", "eqm")
DRAWS = {  # of gamma in training: overrides
    "mixture": (),  # the recipes' own
    "per_frame": ("gamma.kind=per_frame",),  # the recipe's density stays
    "shared": ("gamma.kind=shared",),
}
TRIAL = 100  # the seed of the short runs that choose a learning rate
ELSEWHERE = 1_000_000  # added to the seeds of the clips on which samplers are chosen
EVALUATIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 50)
GENERATION = "generation"


@dataclass(frozen=True, kw_only=True)
class Forcing(Opening, Trained, Longer, Guided, Seeded, Batched, Measuring, group="compare"):
    """Compare EqM, Equilibrium Forcing and flow matching, with error bars.

    The recipes of forcing/ differ only in the training target. Each is trained several times, for each draw of gamma,
    with the learning rate whose short run had the lowest held-out loss. Every target is sampled with the sampler that
    suits it best, chosen on other clips than those that are reported.
    Everything is measured in closed form, on the same clips and noise for all: generation, image-to-video,
    continuation, in-betweening, long videos, quality by the number of evaluations, the error of the field and of its
    estimate of gamma; with --metrics generated clips are also compared with those of --data. Means have 95 % intervals
    over runs and clips, and differences are paired.

    The runs lie in --out, and the videos are written if --data does not exist. Finished runs and measurements are
    reused, interrupted runs continue. With --existing nothing is trained: finished runs are measured and compared.
    Words such as train.steps=1000 replace values in all recipes.
    """

    data: Path = Path("data/endless_shapes")
    draws: tuple[str, ...] = option(
        ("mixture",), choices=tuple(DRAWS), metavar="DRAW", help="draws of gamma in training"
    )
    runs_each: int = option(3, least=1, most=100, metavar="S", help="training runs of each target, with seeds 0 to S-1")
    rates: tuple[float, ...] = option((1.5e-3, 3e-3, 6e-3), above=0, metavar="LR", help="learning rates that are tried")
    trial_steps: int = option(300, least=1, metavar="N", help="steps of the short runs that try them")
    existing: bool = option(False, help="train nothing: compare the runs that are finished")
    clips: int = same(HeldOut, "clips", least=2)
    long_clips: int = same(Tasks, "long_clips")
    length: int | None = narrower(None, least=8, unset="ten times T")
    overlap: int | None = narrower(None, unset="half of T")
    context: int = same(Tasks, "context")
    budget: int = option(24, least=2, metavar="N", help="field evaluations of every task")
    metrics: tuple[str, ...] | None = narrower((), unset="none")
    evaluations: tuple[int, ...] = option(EVALUATIONS, least=1, metavar="N", help="evaluations that are measured")

    def check(self) -> None:
        """UserError for overrides of keys that the study sets itself, and for metrics that samples cannot have."""
        if self.metrics:
            chosen_metrics(self, feature_name(self, frames=2))
        own = ("train.lr", "train.seed", "gamma", "objective", "model.conditioned_on_gamma")
        for word in self.all_overrides:
            key = word.partition("=")[0]
            if any(key == name or key.startswith(f"{name}.") for name in own):
                raise UserError(f"{word} is a key that the study sets itself: leave it out (--rates, --draws)")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables, by name."""
        return {name: "\n\n".join(parts) for name, parts in report.views(numbers).items()}

    def run(self) -> Report:
        """Train missing runs, and make missing measurements."""
        names = RECIPES.chosen(self.chosen)
        if self.metrics:
            check_evaluation(self, RECIPES.config(names[0], self))
        if not self.existing:
            self.train(names)
        runs = {
            (draw, name, seed): self.variant(draw, name, seed)
            for draw in self.draws
            for name in names
            for seed in range(self.runs_each)
        }
        finished = {key: run for key, run in runs.items() if (self.out / run.folder / "export").is_dir()}
        if not finished:
            raise UserError(f"no run of {', '.join(names)} is finished in {self.out}: leave --existing out to train")
        measurer = Measurer(self)
        first = [(draw, name) for draw in self.draws for name in names if (draw, name, 0) in finished]
        chosen = {pair: measurer.choose(*pair) for pair in first}
        measured = {key: measurer.measure(*key, chosen[key[:2]]["chosen"]) for key in finished if key[:2] in chosen}
        gathered = results.gather(measured)
        for draw in gathered["field"]:
            gathered["field"][draw] |= results.estimates([measurer.exact()])
        numbers = {
            "settings": measurer.settings(),
            "learning rates": {name: self.rate(name) for name in names},
            "samplers": {
                draw: {name: chosen[draw, name] for other, name in first if other == draw} for draw in self.draws
            },
            "finished": ["/".join(map(str, key)) for key in measured],
            **gathered,
            **({"metrics": results.metrics(measured)} if self.metrics else {}),
            "loss": results.loss_gaps({key: self.out / run.folder / "metrics.jsonl" for key, run in finished.items()}),
        }
        tables = report.tables(numbers)
        return Report(numbers, tables, report.pictures(numbers), {"forcing.md": tables})

    def train(self, names: list[str]) -> None:
        """Train the short runs, then all others: one of each target before the second of any."""
        write_videos(self.data, endless=True)
        for name in names:
            for rate in self.rates if len(self.rates) > 1 else ():
                RECIPES.train(name, self, self.trial(name, rate))
        for draw in self.draws:
            for seed in range(self.runs_each):
                for name in names:
                    RECIPES.train(name, self, self.variant(draw, name, seed))

    def trial(self, name: str, rate: float) -> Variant:
        """The short run of a target that tries a learning rate."""
        steps = f"train.steps={self.trial_steps}"
        words = (f"train.lr={rate:g}", f"train.seed={TRIAL}")
        return Variant(f"mixture_{name}_lr_{rate:g}", (*words, steps, f"held_out.every={self.trial_steps}"))

    def variant(self, draw: str, name: str, seed: int) -> Variant:
        """A run of a target."""
        rate = self.rate(name)["chosen"]
        words = (*DRAWS[draw], f"train.seed={seed}", *([] if rate is None else [f"train.lr={rate:g}"]))
        return Variant(f"{draw}_{name}_seed_{seed}", words)

    def rate(self, name: str) -> dict[str, Any]:
        """The learning rates of a target that were tried, with the last held-out loss of each, and the best one.

        chosen is None until all have been tried; a single rate is taken as it is.
        """
        if len(self.rates) == 1:
            return {"tried": {}, "chosen": self.rates[0]}
        tried = {}
        for rate in self.rates:
            log = self.out / self.trial(name, rate).folder / "metrics.jsonl"
            losses = results.held_out(log) if log.is_file() else {}
            if self.trial_steps in losses:
                tried[f"{rate:g}"] = losses[self.trial_steps]["mean"]
        complete = len(tried) == len(self.rates)
        return {"tried": tried, "chosen": float(min(tried, key=tried.__getitem__)) if complete else None}


class Measurer:
    """Measures runs on the same clips, and keeps a file for each measurement in OUT/measured."""

    def __init__(self, study: Forcing) -> None:
        self.study, self.kept = study, Measured(study.out, study.again)
        self.opened: tuple[str, EqMPipeline] | None = None
        self.truths: dict[int, Truth] = {}
        self.opened_judge: Judge | None = None

    def open(self, folder: str) -> EqMPipeline:
        """The model of a run; the last one opened is kept."""
        if self.opened is None or self.opened[0] != folder:
            self.opened = (folder, open_model(self.study, self.study.out / folder / "export"))
        return self.opened[1]

    def length(self, pipeline: EqMPipeline) -> int:
        """Frames of a long video."""
        return self.study.length or 10 * pipeline.check_frames()

    def overlap(self, pipeline: EqMPipeline) -> int:
        """Frames that the windows of a long video share."""
        return self.study.overlap or max(1, pipeline.check_frames() // 2)

    def truth(self, pipeline: EqMPipeline, count: int, seed: int) -> Truth:
        """The first `count` clips of a seed, as long as the long videos."""
        if seed not in self.truths:
            names = names_of(pipeline, max(self.study.clips, self.study.long_clips))
            self.truths[seed] = Truth.render(names, self.length(pipeline), pipeline.check_size()[0], seed)
        return self.truths[seed].first(count)

    def setting(self, pipeline: EqMPipeline, how: Mapping[str, Any], *, count: int = 0, seed: int = 0) -> Setting:
        """The setting of a measurement: `count` clips of a seed, and sampling as `how` says."""
        study = self.study
        truth = self.truth(pipeline, count or study.clips, study.seed + seed)
        sampling = Sampling(**{"guidance_scale": study.guidance_scale, **how})
        return Setting(truth, study.seed + seed, study.batch_size, sampling)

    def settings(self) -> dict[str, Any]:
        """The settings for the record."""
        keys = ("clips", "long_clips", "context", "budget", "guidance_scale", "seed", "trial_steps", "runs_each")
        pipeline = self.opened[1]
        own = {key.replace("_", " "): getattr(self.study, key) for key in keys}
        scale = own_scale(self.study, pipeline)
        return {"frames": pipeline.check_frames(), "length": self.length(pipeline), **own, "guidance scale": scale}

    def wanted(self, pipeline: EqMPipeline, **more: Any) -> dict[str, Any]:
        """The settings that a measurement depends on."""
        keys = ("clips", "guidance_scale", "seed", "budget")
        return {"weights": fingerprint(pipeline), **{key: getattr(self.study, key) for key in keys}, **more}

    def choose(self, draw: str, name: str) -> dict[str, Any]:
        """The sampler of a target: the best in generation with the first run, on clips that are reported nowhere.

        Best is the one with most clips that show direction and shape of their label; the first of equal ones.
        """
        folder = f"{draw}_{name}_seed_0"
        pipeline, count = self.open(folder), self.study.clips
        task = Task(GENERATION, (), True)

        def work() -> tuple[dict[str, Any], None]:
            tried = {}
            for way in ways(pipeline.decay).values():
                how = way.sampling(self.study.budget)
                if how is not None:
                    setting = self.setting(pipeline, how, count=count, seed=ELSEWHERE)
                    right = measure.carry_out(pipeline, task, setting)["both"]
                    tried[way.name] = sum(right) / len(right)
            return {"tried": tried, "chosen": max(tried, key=tried.__getitem__)}, None

        wanted = self.wanted(pipeline, ways=list(ways(pipeline.decay)))
        record = self.kept.keep(f"{draw}_{name}_sampler", wanted, work)
        return {key: record[key] for key in ("tried", "chosen")}

    def measure(self, draw: str, name: str, seed: int, chosen: str) -> dict[str, Any]:
        """All measurements of one run: values for each clip by task, the curve, the field's errors, the long video."""
        folder, study = f"{draw}_{name}_seed_{seed}", self.study
        pipeline, parts = self.open(folder), {}
        for part in ("tasks", "curve", "field", "long", *(["metrics"] if study.metrics else [])):
            settings = {"way": chosen, "context": study.context} if part in ("tasks", "long") else {}
            if part == "metrics":
                settings = {"way": chosen, "metrics": list(study.metrics), "features": study.features}
            if part == "curve":  # and the known frames of continuation
                settings = {
                    "context": study.context,
                    "evaluations": study.evaluations,
                    "ways": list(ways(pipeline.decay)),
                }
            if part == "long":
                settings |= {"length": self.length(pipeline), "overlap": self.overlap(pipeline)}
                settings["long clips"] = study.long_clips
            wanted, work = self.wanted(pipeline, **settings), partial(getattr(self, part), pipeline, chosen)
            parts[part] = self.kept.found(f"{folder}_{part}", wanted, f"measuring {folder}: {part}", work)
        return parts

    def tasks(self, pipeline: EqMPipeline, chosen: str) -> dict[str, Any]:
        """Every task within one clip, and generation without guidance."""
        how = ways(pipeline.decay)[chosen].sampling(self.study.budget)
        listed = tasks_short.tasks(pipeline.check_frames(), self.study.context)
        values = {task.name: measure.carry_out(pipeline, task, self.setting(pipeline, how)) for task in listed}
        plain = self.setting(pipeline, {**how, "guidance_scale": 1.0})
        return values | {f"{GENERATION}, no guidance": measure.carry_out(pipeline, listed[0], plain)}

    def curve(self, pipeline: EqMPipeline, chosen: str) -> dict[str, Any]:
        """The tasks of `CURVES` by sampler and number of evaluations: a value for each clip."""
        listed = {task.name: task for task in tasks_short.tasks(pipeline.check_frames(), self.study.context)}
        values: dict[str, Any] = {task: {way: {} for way in ways(pipeline.decay)} for task in results.CURVES}
        for way in ways(pipeline.decay).values():
            for count in self.study.evaluations:
                how = way.sampling(count)
                if how is not None:
                    setting = self.setting(pipeline, how)
                    for task, key in results.CURVES.items():
                        values[task][way.name][str(count)] = measure.carry_out(pipeline, listed[task], setting)[key]
        return values

    def field(self, pipeline: EqMPipeline, chosen: str) -> dict[str, Any]:
        """The errors of the field and of its estimate of gamma, by gamma."""
        study = self.study
        truth = self.truth(pipeline, study.clips, study.seed)
        return measure.field_errors(pipeline, truth, measure.GAMMAS, study.seed, study.batch_size)

    def metrics(self, pipeline: EqMPipeline, chosen: str) -> dict[str, Any]:
        """--metrics of generated clips against those of --data, and what real clips reach."""
        study = self.study
        setting = self.setting(pipeline, ways(pipeline.decay)[chosen].sampling(study.budget))
        clips = tasks_short.fill(pipeline, Task(GENERATION, (), True), setting).clips
        judge = self.judge(pipeline, setting)
        values = judge(clips, setting.truth.names)
        return {"values": {name: values[name] for name in study.metrics}, **judge.scale(len(clips))}

    def judge(self, pipeline: EqMPipeline, setting: Setting) -> Judge:
        """The metrics against the clips of --data, which are measured once for all runs."""
        if self.opened_judge is None:
            names, count = setting.truth.names, len(setting.truth.names)
            shape = pipeline.check_frames(), pipeline.check_size()
            request = Request([None] * count, names, [0] * count, *shape, 1.0, self.study.batch_size)
            self.opened_judge = Judge.of(pipeline, request, self.study)
        return self.opened_judge

    def exact(self) -> dict[str, measure.Errors]:
        """The errors of the exact field of clips like those of the training set."""
        pipeline, study = self.opened[1], self.study
        truth = self.truth(pipeline, study.clips, study.seed)
        return measure.exact_errors(pipeline, truth, measure.GAMMAS, study.seed, study.batch_size)

    def long(self, pipeline: EqMPipeline, chosen: str) -> dict[str, Any]:
        """Clips continued to a long video."""
        how = ways(pipeline.decay)[chosen].sampling(self.study.budget)
        setting = self.setting(pipeline, how, count=self.study.long_clips)
        return measure.rolled_out(pipeline, setting, self.overlap(pipeline))
