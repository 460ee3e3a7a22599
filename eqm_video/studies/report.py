"""The report of training runs: their files, descents of their models, and the results of other studies below them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import html, plots
from eqm_video.output.html import Section, Table
from eqm_video.output.media import grid, write
from eqm_video.output.outputs import OUTPUTS
from eqm_video.sampling.arguments import default_steps
from eqm_video.sampling.option_groups import Seeded
from eqm_video.studies.descent.study import numbers
from eqm_video.studies.descent.trace import Trace, trace
from eqm_video.studies.request import Request
from eqm_video.studies.study import Opening, Report, Study
from eqm_video.system.reading import read_json
from eqm_video.training.report import REPORT, RunFiles, distinct, page, short

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline

SHARES = (0.5, 0.2, 0.1)  # tolerances of the histogram, as shares of the first gradient
MOST_PICTURE = 8 * 2**20  # bytes of a picture of a study, at most: a larger one is named
FLOORS = "The column real is the floor: real clips against other real clips. codec: real clips through the codec alone."
ABOUT = ("origin", "command", "commit", "options", "machine")  # keys of a record that are no numbers
PLAIN = ("report", "cache", "look", "sample", "demo", "train-codec", "reconstruct")  # their records are no results
# Studies by the names of their records
RECORDS = {
    next(iter(output.records)): command
    for command, output in OUTPUTS.items()
    if command not in PLAIN and next(iter(output.records), "").endswith(".json")
}


@dataclass(frozen=True, kw_only=True)
class RunReport(Opening, Seeded, group="look", record="report.json"):
    """A page on training runs: a single HTML file that needs nothing else.

    The page has the recipe and its differences, loss and loss by gamma, evaluations during training, previews, the data
    and the machine. A few descents of the model are recorded as well: gradient and score along the descent, and after
    how many evaluations clips would stop at a tolerance. Results of other studies (evaluate; compare, with the nearest
    training clips; descent, ood ...) in folders below the run, or named by --include, become sections with their tables
    and pictures. Several runs share one page.
    """

    folders: tuple[Path, ...] = option(positional=True, metavar="RUN", help="folders of training runs")
    out: Path | None = narrower(None, unset="the folder of the first run")
    include: tuple[Path, ...] = option((), metavar="FOLDER", help="folders with results of further studies")
    descents: int = option(8, least=0, most=64, metavar="N", help="clips to descend with each model; 0 = none")

    @property
    def folder(self) -> Path:
        """--out, or the folder of the first run."""
        return self.out if self.out is not None else self.folders[0]

    def check(self) -> None:
        """UserError for --include that are no folders, and for a run that is given twice."""
        if len({folder.resolve() for folder in self.folders}) < len(self.folders):
            raise UserError("a run is given twice: give each folder once")
        for folder in self.include:
            if not folder.is_dir():
                raise UserError(f"--include {folder} is no folder: give one that a study wrote")

    def paths(self) -> Sequence[Path]:
        """The runs that have a model, unless no descents are wanted; UserError for folders that are no runs."""
        for run in self.folders:
            RunFiles.read(run)
        return [run for run in self.folders if has_model(run)] if self.descents else []

    def run(self, *models: EqMPipeline) -> Report:
        """Read the runs, descend with their models, and collect the results of other studies."""
        runs = distinct([RunFiles.read(folder) for folder in self.folders])
        names = [run.name for run in runs if has_model(run.folder)]
        traces: list[Trace] = []
        refused: list[str] = []
        for name, model in zip(names, models, strict=False):
            try:
                traces.append(self.descend(model, name))
            except UserError as error:
                refused.append(f"{name}: no descent was recorded, since {error}.")
        sections = descents(traces, refused) if traces or refused else []
        places = [*(run.folder for run in runs), *self.include]
        collected = list(dict.fromkeys(record for place in places for record in records(place)))
        sections += [result(*record) for record in collected]
        made = page(runs, sections)
        record = {"runs": [str(run.folder) for run in runs], "descents": [numbers(each) for each in traces]}
        parts = ", ".join(section.title for section in made.sections)
        return Report(
            record, f"sections: {parts}; open {self.folder / REPORT} in a browser", files={REPORT: made.render()}
        )

    def descend(self, pipeline: EqMPipeline, name: str) -> Trace:
        """Recorded descents of a model with the sampler that its export recommends."""
        asked_for = _Samples(self.descents, self.seed)
        steps = default_steps(pipeline.config.sampler, None)
        request = Request.of(pipeline, asked_for)
        return trace(pipeline, request, name, pipeline.rule(), steps, shown=self.descents, along=False)


@dataclass(frozen=True)
class _Samples:
    """The options of a `Request`: `num_samples` clips from `seed` on, all else as the model was trained."""

    num_samples: int
    seed: int
    labels: None = None
    guidance_scale: None = None
    frames: None = None
    size: None = None
    batch_size: int = 64


def has_model(run: Path) -> bool:
    """Whether a run has an export or a checkpoint."""
    return (run / "export" / "model_index.json").is_file() or any(run.glob("checkpoints/step_*/checkpoint.json"))


# Descents -----------------------------------------------------------------------------------------------------------


def descents(traces: Sequence[Trace], refused: Sequence[str]) -> list[Section]:
    """Samples, gradient, energy or score, and the histogram of steps of each model."""
    if not traces:
        return [Section("Descents", refused)]
    clips = len(traces[0].rms[0])
    how = "; ".join(
        f"{each.name}: {each.settings['sampler']['kind']}, {each.settings['nfe']} evaluations" for each in traces
    )
    text = (
        f"{clips} descents from noise with the sampler of the recipe ({how}). The gradient should fall towards 0 where "
        "clips are at rest. Curves are means over clips and frames, bands the middle 80 %."
    )
    pictures = [html.drawn(_curve(traces, "rms", "gradient"), "gradient of a frame, root mean square")]
    energy = _curve(traces, "energy", traces[0].measure)
    pictures.append(html.drawn(energy, f"{traces[0].measure}, mean over the values of a frame"))
    restless = []
    for each in traces:
        who = f"{each.name}: " if len(traces) > 1 else ""
        if stops(each.rms, SHARES[0] * float(each.rms[0].mean())):
            pictures.append(html.drawn(_histogram(each), f"{who}evaluations until a clip would stop, by tolerance"))
        else:
            restless.append(f"{who}no clip would stop: no gradient falls to {SHARES[0]:.0%} of the first one.")
    pictures += [_samples(each) for each in traces]
    return [Section("Descents", [text, *restless, *refused], pictures=pictures)]


def _curve(traces: Sequence[Trace], key: str, label: str) -> Any:
    figure = plots.figure(4.6, 3.2)
    scale = "log" if key == "rms" else "linear"
    axes = plots.axes(figure, xlabel="evaluations of the field", ylabel=label, yscale=scale)
    for index, each in enumerate(traces):
        values: Tensor = getattr(each, key).double().flatten(1)
        low, high = torch.quantile(values, torch.tensor([0.1, 0.9], dtype=torch.float64), dim=1)
        axes.fill_between(range(len(values)), low, high, color=plots.PALETTE[index % 6], alpha=0.2, linewidth=0)
        axes.plot(values.mean(1), color=plots.PALETTE[index % 6], label=plots.words(each.name))
    if key == "rms":
        plots.ticks_1_2_5(axes.yaxis)
    if len(traces) > 1:
        plots.legend(axes, below=True)
    return figure


def stops(rms: Tensor, tolerance: float) -> list[int]:
    """The evaluations after which clips stop at a `tolerance`; clips that do not stop are left out.

    rms (E, B, T): gradients of frames. A clip stops at the first evaluation whose largest frame is under the tolerance.
    """
    under = rms.amax(2) < tolerance  # (E, B)
    first = under.float().argmax(0) + 1
    return [int(first[clip]) for clip in range(under.shape[1]) if bool(under[:, clip].any())]


def _histogram(one_model: Trace) -> Any:
    figure = plots.figure(4.6, 3.2)
    axes = plots.axes(figure, xlabel="evaluations", ylabel="clips")
    start, clips = float(one_model.rms[0].mean()), one_model.rms.shape[1]
    edges = np.linspace(0, len(one_model.rms), 21)
    counts = [stops(one_model.rms, share * start) for share in SHARES]
    labels = [f"{s:.0%} of the first gradient: {len(c)} of {clips}" for s, c in zip(SHARES, counts, strict=True)]
    axes.hist(counts, edges, color=list(plots.PALETTE[: len(SHARES)]), label=labels)  # beside each other
    axes.set_ylim(0, clips)
    axes.yaxis.get_major_locator().set_params(integer=True)
    plots.legend(axes)
    return figure


def _samples(one_model: Trace) -> html.Picture:
    """The samples at the end of the descents, as a moving picture."""
    clips = one_model.pixels[-1]
    frames = grid(clips, scale=max(1, 96 // clips.shape[3]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("samples.png" if len(frames) == 1 else "samples.gif")
        write(path, frames, 8.0)
        return html.shown(path, f"samples of {one_model.name} at the end of these descents")


# Results of other studies -------------------------------------------------------------------------------------------


def records(folder: Path) -> Iterator[tuple[str, Path]]:
    """(command, file) of every record of a study in `folder` and two levels below, in the order of their paths."""
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
        for path in sorted(folder.glob(pattern)):
            command = RECORDS.get(path.name)
            if command is None or {"export", "checkpoints"} & set(path.relative_to(folder).parts):
                continue
            if OUTPUTS[command].records[path.name](path):  # a file of others may have the same name
                yield command, path


def result(command: str, file: Path) -> Section:
    """The section of a study's record: its command, its tables, its protocol or settings, and its pictures."""
    record = read_json(file)
    tables = [table for text in views(command, record).values() for table in Table.of_markdown(text)]
    for key, head in (("protocol", "protocol"), ("settings", "setting")):
        if isinstance(record.get(key), dict):
            tables.append(_values(head, record[key]))
    tables += [_values("number", record)]
    pictures, larger = [], []
    for path in sorted(file.parent.iterdir()):
        if path.suffix in html.KINDS and path.is_file() and OUTPUTS[command].writes(path.name):
            if path.stat().st_size <= MOST_PICTURE:
                pictures.append(html.shown(path, path.name))
            else:
                larger.append(path.name)
    text = [*([FLOORS] if "metrics" in record else []), f"All numbers: {file}"]
    text += [f"Too large for this page: {', '.join(larger)}."] if larger else []
    title = command if file.parent.name == command else f"{command}, {file.parent.name}"
    return Section(title, text, str(record.get("command", "")), [t for t in tables if t.body], pictures, wide=True)


def views(command: str, record: dict[str, Any]) -> Mapping[str, str]:
    """The texts, with tables as Markdown, that a study makes of its record."""
    name = f"eqm_video.studies.{command.replace('-', '_')}"
    package = find_spec(name)
    inside = package is not None and package.submodule_search_locations is not None
    module = import_module(f"{name}.study" if inside else name)
    # No issubclass: before Python 3.11 an alias such as tuple[int, int] counts as a type, and is refused by it.
    made = [value for value in vars(module).values() if Study in getattr(value, "__mro__", ())]
    return next((study.views(record) for study in made if getattr(study, "name", None) == command), {})


def _values(head: str, values: Mapping[str, Any]) -> Table:
    """The numbers, words and short lists of a mapping as a table."""
    rows = []
    for key, value in values.items():
        if key not in ABOUT and isinstance(value, (int, float, str, list)) and 0 < len(str(value)) <= 100:
            text = f"{value:.6g}" if isinstance(value, float) else short(value).strip("[]")
            rows += [[key.replace("_", " "), text]] if text else []
    return Table([head, "value"], rows)
