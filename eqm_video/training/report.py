"""The report of training runs: a page with their recipes, losses, previews, data and machine.

It is made of the files that a run keeps: config.yaml, metrics.jsonl, previews and the newest checkpoint's record.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError
from eqm_video.output import html, plots
from eqm_video.output.html import Page, Section, Table
from eqm_video.output.tables import metric_rows
from eqm_video.system.files import write_text
from eqm_video.system.reading import read_json
from eqm_video.training.config import Config, load_config, to_tree, to_yaml
from eqm_video.training.strict_yaml import as_yaml, flatten
from eqm_video.wording import counted, duration

REPORT = "report.html"  # its name in the folder of a run
PREVIEWS = 6  # previews of a run that are shown, at most
MOST_BYTES = 12 * 2**20  # of all previews of a run
MOMENTS = 4  # curves of loss by gamma, at most
LONGEST = 40  # characters of a run's name in tables and figures
LARGEST = 1e300  # of the numbers of a log: what is not below is not finite
DASHES = ("-", "-.", ":")  # of runs, six of each
PICTURES = (b"GIF8", b"\x89PNG")  # how files of previews begin
PLACES = {"device": "device", "processor": "processor", "cpu": "CPU", "cpu_cores": "cores", "threads": "threads"}


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, read.

    lines: of metrics.jsonl, by step. record: checkpoint.json of the newest checkpoint, {} without any. evaluation: of
    train.evaluate, the newest record, {} without any. alias: the name on a page of several runs, "" for the folder's.
    """

    folder: Path
    config: Config
    lines: list[dict[str, Any]]
    previews: list[Path]
    record: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    alias: str = ""

    @property
    def name(self) -> str:
        """The alias, or the name of the run's folder."""
        return self.alias or self.folder.resolve().name

    @classmethod
    def read(cls, folder: str | Path, *, strict: bool = True) -> RunFiles:
        """The files of the run in `folder`; UserError without a config.yaml or, if `strict`, a line of a log."""
        folder = Path(folder).expanduser()
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is no training run, since it has no config.yaml: give the folder of run.dir")
        lines = read_log(folder / "metrics.jsonl")
        if strict and not lines:
            raise UserError(f"{folder}/metrics.jsonl has no line yet: wait for the first step in train.log_every")
        previews = sorted(path for path in folder.glob("previews/step_*") if _is_preview(path))
        checkpoints = sorted(folder.glob("checkpoints/step_*/checkpoint.json"), key=lambda path: path.parent.name)
        record = read_json(checkpoints[-1]) if checkpoints else {}
        measured = sorted(folder.glob("evaluations/step_*.json"))
        evaluation = read_json(measured[-1]) if measured else {}
        return cls(folder, load_config(folder / "config.yaml"), lines, previews, record, evaluation)

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a number of the log, such as "loss" or "held_out/mean", where it was measured."""
        points = []
        for line in self.lines:
            value: Any = line
            for part in key.split("/"):
                value = value.get(part) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)):
                points.append((line["step"], float(value)))
        return [step for step, _ in points], [value for _, value in points]

    def last(self, key: str) -> str:
        """The last value of a number of the log, as text; "-" if there is none."""
        values = self.curve(key)[1]
        return f"{values[-1]:.4g}" if values else "-"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, by step; [] without such a file. A line cut by a full disk is left out.

    A line has "step", finite numbers, and mappings of them; other values are left out.
    """
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        line = _numbers(line)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines[line["step"]] = line  # a resumed run may have written a step twice
    return [lines[step] for step in sorted(lines)]


def _numbers(value: Any) -> Any:
    """A finite number, or a mapping with its finite numbers; None for all else."""
    if isinstance(value, dict):
        inner = {key: _numbers(each) for key, each in value.items()}
        return {key: each for key, each in inner.items() if each is not None}
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST else None


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key of a file that may be damaged; {} for anything else."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _is_preview(path: Path) -> bool:
    """Whether a file is the picture of a step."""
    if path.suffix not in html.KINDS or not re.fullmatch(r"step_\d+", path.stem) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in PICTURES


def write_report(folder: str | Path) -> Path:
    """Write the report of a run into its folder; returns the file. UserError if figures cannot be drawn."""
    run = RunFiles.read(folder)
    write_text(run.folder / REPORT, page([run]).render())
    return run.folder / REPORT


def distinct(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The runs with aliases that differ and have about LONGEST characters: folders above the last one where needed."""
    places = [run.folder.resolve() for run in runs]
    named: list[RunFiles] = []
    for run, place in zip(runs, places, strict=True):
        depth = 1
        while any(other != place and other.parts[-depth:] == place.parts[-depth:] for other in places):
            depth += 1
        name = "/".join(place.parts[-depth:])
        name = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[1 - LONGEST // 2 :]}"
        twins = sum(other.alias.startswith(name) for other in named)
        named.append(replace(run, alias=f"{name} ({twins + 1})" if twins else name))
    return named


def page(runs: Sequence[RunFiles], more: Sequence[Section] = ()) -> Page:
    """The page of one run, or of several that are `distinct`, with `more` sections before the last, the machine."""
    first = runs[0]
    steps = counted(first.lines[-1]["step"], "step")
    what = f"{first.config.model.preset}, {steps} of {first.config.train.steps}, {first.folder}"
    title = f"Training run {first.name}" if len(runs) == 1 else f"{len(runs)} training runs"
    sections = [recipe(runs), losses(runs), *evaluations(runs), *previews(runs), *data(runs), *more, machine(runs)]
    return Page(title, what if len(runs) == 1 else ", ".join(run.name for run in runs), facts(runs), sections)


def facts(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """(name, value) pairs in a few words: of a single run; for several, the held-out loss of each."""
    if len(runs) > 1:
        key = "held_out/mean" if all(run.curve("held_out/mean")[1] for run in runs) else "loss"
        return [(f"{key.replace('_', '-').replace('/', ' ')}, {run.name}", run.last(key)) for run in runs]
    run = runs[0]
    seconds, speed = run.curve("seconds")[1], run.curve("clips_per_second")[1]
    pairs = [
        ("objective", run.config.objective_name),
        ("loss at the end", run.last("loss")),
        ("held-out loss", run.last("held_out/mean")),
        ("time", duration(seconds[-1]) if seconds else "-"),
        ("clips a second (median)", f"{sorted(speed)[len(speed) // 2]:.3g}" if speed else "-"),
        ("codec", Path(run.config.codec.name).name),
    ]
    return [pair for pair in pairs if pair[1] != "-"]


# Sections -----------------------------------------------------------------------------------------------------------


def recipe(runs: Sequence[RunFiles]) -> Section:
    """The recipe: its values that differ from the defaults, or between the runs; the whole of it on a click."""
    trees = [dict(flatten(to_tree(run.config))) for run in runs]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    whole = [(f"the whole recipe of {run.name}", to_yaml(run.config)) for run in runs]
    again = f"eqm-video train --config {shlex.quote(str(runs[0].folder / 'config.yaml'))} run.dir=NEW"
    if len(runs) > 1:
        rows = [[key, *(short(tree.get(key)) for tree in trees)] for key in keys if key != "run.dir"]
        rows = [row for row in rows if len(set(row[1:])) > 1]
        text = "The values that differ between the runs." if rows else "All runs have the same recipe."
        tables = [Table(["key", *(run.name for run in runs)], rows)] if rows else []
        return Section("Recipe", [text], again, tables, folded=whole)
    default = dict(flatten(to_tree(Config())))
    changed = [key for key in keys if key != "run.dir" and trees[0].get(key) != default.get(key)]
    rows = [[key, short(trees[0][key]), short(default.get(key))] for key in changed]
    text = "The values that differ from the defaults. The command trains the same model again, in another folder."
    return Section("Recipe", [text], again, [Table(["key", "this run", "default"], rows)], folded=whole)


def losses(runs: Sequence[RunFiles]) -> Section:
    """Loss, held-out loss, loss by gamma, gradient norm and speed."""
    curves = [_loss_figure(runs), _gamma_figure(runs)]
    curves += [
        html.drawn(_curves(runs, "grad_norm", "gradient norm"), "norm of the weights' gradient, before clipping")
    ]
    curves.append(html.drawn(_curves(runs, "clips_per_second", "clips a second"), "speed, without evaluations"))
    names = dict.fromkeys(name for run in runs for line in run.lines for name in _mapping(line, "evaluate"))
    curves += [_metric_figure(runs, name) for name in names]
    text = (
        "The loss is the mean squared error of the field against its target. It depends on the codec, the decay and "
        "the draw of gamma: compare runs only where these are equal."
    )
    return Section("Loss", [text], pictures=curves)


def _loss_figure(runs: Sequence[RunFiles]) -> html.Picture:
    figure = _curves(runs, "loss", "loss", yscale="log")
    axes, held_out = figure.axes[0], False
    for index, run in enumerate(runs):
        steps, values = run.curve("held_out/mean")
        held_out |= bool(values)
        label = "held-out clips" if len(runs) == 1 else plots.words(f"{run.name}, held out")
        if values:
            axes.plot(steps, values, "--o", color=plots.PALETTE[(index + (len(runs) == 1)) % 6], label=label, ms=3)
    plots.legend(axes, below=len(runs) > 1)
    plots.ticks_1_2_5(axes.yaxis)
    more = "; dashed: clips that are not trained on, at fixed gammas" if held_out else ""
    return html.drawn(figure, f"loss by step{more}")


def _metric_figure(runs: Sequence[RunFiles], name: str) -> html.Picture:
    """A metric of samples against held-out clips by step, with its intervals and, of a single run, its floor."""
    figure = plots.figure(4.6, 3.2)
    axes = plots.axes(figure, xlabel="step", ylabel=name)
    for index, run in enumerate(runs):
        steps, values = run.curve(f"evaluate/{name}/value")
        low, high = (run.curve(f"evaluate/{name}/{end}")[1] for end in ("low", "high"))
        colour = plots.PALETTE[index % 6]
        if not steps:
            continue
        axes.plot(steps, values, "-o", color=colour, label=plots.words(run.name) if len(runs) > 1 else "samples", ms=3)
        if len(low) == len(high) == len(steps):
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        floor = run.curve(f"evaluate/{name}/floor")[1]
        if floor and len(runs) == 1:
            axes.axhline(floor[-1], color=plots.GREY, linestyle=":", label="real clips")
    plots.legend(axes, below=len(runs) > 1)
    return html.drawn(figure, f"{name} of samples against held-out clips, with 95 % intervals")


def _gamma_figure(runs: Sequence[RunFiles]) -> html.Picture:
    """Loss by gamma: of a single run at a few moments, of several at the end of each."""
    figure = plots.figure(4.6, 3.2)
    axes = plots.axes(figure, xlabel="gamma: 0 = noise, 1 = data", ylabel="loss of a frame", yscale="log")
    series = []
    for run in runs:
        lines = [line for line in run.lines if _mapping(line, "loss_by_gamma")]
        count = 1 if len(runs) > 1 else min(MOMENTS, len(lines))
        chosen = dict.fromkeys(len(lines) - 1 - k * (len(lines) - 1) // max(1, count - 1) for k in range(count))
        who = plots.words(run.name)
        series += [(who if len(runs) > 1 else f"step {lines[k]['step']}", lines[k]) for k in sorted(chosen)]
    for index, (name, line) in enumerate(series):
        bins = line["loss_by_gamma"]
        values = {float(low): bins[low] for low in bins if re.fullmatch(r"[01]\.\d+", low) and float(bins[low]) > 0}
        places = sorted(low for low in values if low < 1)  # clean frames have a bin of their own, and a target of 0
        axes.plot(
            [low + 0.05 for low in places], [values[low] for low in places], label=name, ms=3, **plots.style(index)
        )
    plots.ticks_1_2_5(axes.yaxis)
    plots.legend(axes, below=len(runs) > 1)
    return html.drawn(figure, "loss by gamma, in bins of 0.1; clean frames (gamma = 1) are left out")


def _curves(runs: Sequence[RunFiles], key: str, label: str, **settings: Any) -> Any:
    figure = plots.figure(4.6, 3.2)
    axes = plots.axes(figure, xlabel="step", ylabel=label, **settings)
    for index, run in enumerate(runs):
        steps, values = run.curve(key)
        label, dashes = plots.words(run.name) if len(runs) > 1 else "training", DASHES[index // 6 % len(DASHES)]
        axes.plot(steps, values, dashes, color=plots.PALETTE[index % 6], label=label)
    if len(runs) > 1 and key != "loss":
        plots.legend(axes, below=True)
    return figure


def evaluations(runs: Sequence[RunFiles]) -> list[Section]:
    """The newest measurements of train.evaluate, with their protocols on a click; [] without any."""
    heads, rows, protocols, texts = [], [], [], []
    for run in runs:
        record = run.evaluation
        if not {"step", "metrics", "protocol", "protocol_hash"} <= record.keys():
            continue
        heads, *cells = metric_rows(record)
        rows += [[*([run.name] if len(runs) > 1 else []), *row] for row in cells]
        who = f" of {run.name}" if len(runs) > 1 else ""
        texts.append(f"Samples{who} at step {record['step']}: protocol {record['protocol_hash']}.")
        protocols.append((f"protocol of {run.name}", json.dumps(record["protocol"], indent=1, ensure_ascii=False)))
    if not rows:
        return []
    text = (
        "Samples of the averaged weights against held-out clips. The column real is the floor: held-out clips against "
        "others of them. Compare numbers of one protocol and of as many clips only."
    )
    table = Table([*(["run"] if len(runs) > 1 else []), *heads], rows)
    return [Section("Evaluation", [text, *texts], tables=[table], folded=protocols)]


def previews(runs: Sequence[RunFiles]) -> list[Section]:
    """Previews through training, evenly spread, the last one among them."""
    pictures, texts = [], []
    for run in runs:
        count = PREVIEWS if len(runs) == 1 else max(2, PREVIEWS // len(runs))
        chosen = _within(spread(run.previews, count), MOST_BYTES)
        who = f"{run.name}, " if len(runs) > 1 else ""
        pictures += [html.shown(path, f"{who}step {int(path.stem.rpartition('_')[2])}") for path in chosen]
        if len(chosen) < len(run.previews):
            all_of_them = counted(len(run.previews), "preview")
            texts.append(f"{who}{len(chosen)} of {all_of_them} are shown; all are in {run.folder / 'previews'}.")
    if not pictures:
        return []
    text = "Samples of the averaged weights: the same noise and the same labels at every step."
    return [Section("Previews", [text, *texts], pictures=pictures)]


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of `items`, evenly spread, the last one among them."""
    if len(items) <= count:
        return list(items)
    return [items[len(items) - 1 - k * (len(items) - 1) // max(1, count - 1)] for k in reversed(range(count))]


def _within(paths: Sequence[Path], most: int) -> list[Path]:
    """The last of `paths` whose files have at most `most` bytes together."""
    kept: list[Path] = []
    for path in reversed(paths):
        most -= path.stat().st_size
        if most >= 0:
            kept.insert(0, path)
    return kept


def data(runs: Sequence[RunFiles]) -> list[Section]:
    """The data of each run in a line, with its labels on a click."""
    texts, labels = [], []
    for run in runs:
        record, section = _mapping(run.record, "data"), run.config.data
        if not isinstance(record.get("size"), int) or not isinstance(record.get("labels"), list | None):
            continue
        images = f" and {counted(record['images'], 'image')} beside them" if "images" in record else ""
        who = f"{run.name}: " if len(runs) > 1 else ""
        texts.append(
            f"{who}{counted(record['size'], section.kind[:-1])}{images} with "
            f"{counted(len(record['labels']), 'label') if record['labels'] else 'no labels'} "
            f"from {section.root}, split {section.split or 'all'}; {counted(section.frames, 'frame')} of "
            f"{section.size} px, frame interval {section.frame_interval}."
        )
        if record["labels"]:
            labels.append((f"labels of {run.name}", ", ".join(map(str, record["labels"]))))
    return [Section("Data", texts, folded=labels)] if texts else []


def machine(runs: Sequence[RunFiles]) -> Section:
    """The machine and the versions that trained, as far as the run's checkpoints say."""
    rows = []
    for run in runs:
        where = _mapping(run.record, "machine")
        pairs = [(name, where[key]) for key, name in PLACES.items() if key in where]
        pairs += [("processes", run.record["world_size"])] if "world_size" in run.record else []
        pairs += list(_mapping(run.record, "versions").items())
        rows += [[*([run.name] if len(runs) > 1 else []), str(name), str(value)] for name, value in pairs]
    head = [*(["run"] if len(runs) > 1 else []), "what", "value"]
    text = [] if rows else ["The run has no checkpoint yet, which would say where it trains."]
    return Section("Machine", text, tables=[Table(head, rows)] if rows else [])


def short(value: Any) -> str:
    """A value of a recipe, as in YAML, in at most 80 characters."""
    text = as_yaml(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
