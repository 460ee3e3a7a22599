"""Out-of-distribution scores: the field itself separates clips unlike the training data from held-out clips.

Legend: N clips, T frames; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.metrics.ood import SCORES, auroc, auroc_error, frame_scores, largest_jump
from eqm_video.options import narrower, option
from eqm_video.output import media, plots
from eqm_video.sampling.option_groups import SPLIT, Batched, ClipLabels, HeldOut, Seeded
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.batches import batches, encode
from eqm_video.studies.ood.sets import made_sets, other_labels
from eqm_video.studies.request import lists_of, split_of
from eqm_video.studies.study import OneModel, Report
from eqm_video.system import waits

Scores = dict[str, Tensor]  # score -> (N, T)
CUTS = ("spliced", "jump cut")  # sets with a cut before frame T // 2


@dataclass(frozen=True, kw_only=True)
class Ood(OneModel, HeldOut, ClipLabels, Batched, Seeded, group="look"):
    """Tell clips that are unlike the training data, frame by frame.

    Held-out clips of --data are in distribution. They are compared with sets that are not: flat colours and noise, the
    same clips with frames frozen, reversed, shuffled, cut or spliced, and the clips of other folders (--also). Each
    clip has two scores, taken at the clip itself without noise: the RMS of the gradient, and the energy
    (`metrics/ood.py` explains why higher means more out of distribution). The AUROC of a set is the chance that one of
    its clips scores higher than a held-out clip: 1 means always, 0.5 means no separation, and below 0.5 the set scores
    lower than the data.

    Scores are computed for single frames, so that a spliced clip shows its cut: the report says how often the largest
    jump of the score, or its peak, is at the cut.
    """

    labels: str | None = narrower(
        None,
        choices=("none", "given", "both"),
        unset="both if the model knows the labels",
        help="condition on nothing, on the clips' labels, all of which the model must know, or once on each",
    )
    clips: int = narrower(256, least=2)
    also: tuple[Path, ...] = option((), metavar="FOLDER", help="folders of other videos or images, a set each")

    def check(self) -> None:
        """UserError if folders of --also have equal names."""
        by_name(self.also)

    def run(self, pipeline: EqMPipeline) -> Report:
        """Build the sets, score them, and compare each with the held-out clips."""
        frames, size = pipeline.check_frames(), pipeline.check_size()
        common = {"frames": frames, "size": size, "fps": pipeline.config.fps, "count": self.clips}
        split = split_of(self.split, self.data, SPLIT)
        source = Source(self.data, frame_interval=self.frame_interval, **lists_of(split, self.fold), **common)
        clips = source.read()
        modes = label_modes(self.labels, clips, pipeline)
        made, left_out = made_sets(clips, source, self.seed)
        sets = {"held-out clips": clips.pixels, **made}
        sets |= {name: Source(folder, **common).read().pixels for name, folder in by_name(self.also).items()}
        scores = self.score_sets(pipeline, sets, clips.labels, modes)
        numbers = {
            "settings": self.settings(pipeline, source, split),
            "sets": {name: len(pixels) for name, pixels in sets.items()},
            "left out, files too short": left_out,
            "auroc": {mode: areas(scores[mode]) for mode in modes},
            "mean scores": {
                mode: {
                    name: {key: float(of_set[key].mean()) for key in SCORES} for name, of_set in scores[mode].items()
                }
                for mode in modes
            },
            "breaks": {mode: breaks(scores[mode]) for mode in modes} if "spliced" in sets else {},
        }
        pictures = {
            "ood.png": lambda path: draw_areas(numbers["auroc"], path),
            "ood_sets.png": lambda path: draw_examples(sets, path),
        }
        if "spliced" in sets:
            pictures["ood_frames.png"] = lambda path: draw_frames(scores, path, CUTS)
        return Report(numbers, table(numbers), pictures)

    def score_sets(
        self,
        pipeline: EqMPipeline,
        sets: Mapping[str, np.ndarray],
        labels: Sequence[str | None],
        modes: Sequence[str],
    ) -> dict[str, dict[str, Scores]]:
        """Frame scores, label mode -> set -> score -> (N, T).

        With labels, each set takes those of the held-out clips in turn, and "wrong label" is another set: the held-out
        clips with other labels.
        """
        scores: dict[str, dict[str, Scores]] = {mode: {} for mode in modes}
        for name, pixels in waits.bar(sets.items(), "scoring", unit="set"):
            latents = encode(pipeline, pixels, self.batch_size)
            for mode in modes:
                condition = [labels[k % len(labels)] if mode == "given" else None for k in range(len(pixels))]
                scores[mode][name] = score(pipeline, latents, condition, self.batch_size)
                if mode == "given" and name == "held-out clips":
                    wrong = other_labels(condition, self.seed)
                    scores[mode]["wrong label"] = score(pipeline, latents, wrong, self.batch_size)
        return scores

    def settings(self, pipeline: EqMPipeline, source: Source, split: str) -> dict[str, Any]:
        """The settings for the record."""
        return {
            "model": str(self.model),
            "energy": pipeline.transformer.config.energy,
            "data": str(self.data),
            "split": split,
            "also": [str(folder) for folder in self.also],
            "seed": self.seed,
            "frames": source.frames,
            "size": list(source.data.size),
            "fps": pipeline.config.fps,
            "frame_interval": source.data.frame_interval,
        }


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their own names; UserError if two names are equal."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"--also names the sets after the folders, and {', '.join(names)} repeats a name: rename one")
    return dict(zip(names, folders, strict=True))


def label_modes(wanted: str | None, clips: Clips, pipeline: EqMPipeline) -> list[str]:
    """The label modes to measure: "none", "given", or both, as --labels wants.

    UserError for labels unknown to the model.
    """
    unknown = sorted({str(label) for label in clips.labels} - set(pipeline.labels.values()))
    if wanted in ("given", "both") and unknown:
        raise UserError(f"the model does not know the label {unknown[0]!r} of the data: type --labels none")
    wanted = wanted or ("none" if unknown or len(set(clips.labels)) < 2 else "both")
    return ["none", "given"] if wanted == "both" else [wanted]


# Measures -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score(pipeline: EqMPipeline, latents: Tensor, labels: Sequence[str | None], batch_size: int) -> Scores:
    """Frame scores (N, T) of latents (N, T, C, H, W), on the CPU, by the plain field of the labels (no guidance)."""
    parts = []
    for rows in waits.bar(batches(len(latents), batch_size), "fields", unit="batch"):
        field = pipeline.field(list(labels[rows]), num_frames=latents.shape[1], guidance_scale=1.0)
        parts.append(frame_scores(field.at_gamma(1.0), latents[rows], pipeline.transformer.config.energy))
    return {key: torch.cat([part[key] for part in parts]).cpu() for key in SCORES}


def areas(scores: Mapping[str, Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """AUROC and its standard error of every set against the held-out clips, score -> set; "average" over the sets."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for key in SCORES:
        held_out = scores["held-out clips"][key].mean(dim=1)
        table[key] = {}
        for name, of_set in scores.items():
            if name != "held-out clips":
                area = auroc(held_out, of_set[key].mean(dim=1))
                table[key][name] = {"auroc": area, "error": auroc_error(area, len(held_out), len(of_set[key]))}
        mean = sum(cell["auroc"] for cell in table[key].values()) / len(table[key])
        table[key]["average"] = {"auroc": mean}
    return table


def breaks(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Shares of clips, with a cut before frame T // 2 and intact, whose frame scores point at that place.

    "jump": the largest change from frame to frame is there. "peak": the highest score is on either side of it.
    """
    names = [name for name in (*CUTS, "held-out clips") if name in scores]
    frames = scores["held-out clips"]["energy"].shape[1]
    middle = frames // 2
    tests = {
        "jump": lambda values: largest_jump(values) == middle,
        "peak": lambda values: (values.argmax(dim=1) - middle + 0.5).abs() < 1,
    }
    shares = {
        kind: {name: {key: float(test(scores[name][key]).float().mean()) for key in SCORES} for name in names}
        for kind, test in tests.items()
    }
    return {"frame": middle, "chance": {"jump": 1 / (frames - 1), "peak": 2 / frames}, **shares}


# Table and pictures ---------------------------------------------------------------------------------------------------

TITLES = {"gradient_norm": "gradient's RMS", "energy": "energy"}
MODES = {"none": "without label", "given": "with label"}
SHOWN = 6  # clips of a set in the picture of the sets


def table(numbers: Mapping[str, Any]) -> str:
    """AUROC of every set for the screen, a column for each score and label mode, then how often cuts were found."""
    columns = [(mode, key) for key in TITLES for mode in numbers["auroc"]]
    names = list(dict.fromkeys(name for by_score in numbers["auroc"].values() for name in by_score["energy"]))
    names.append(names.pop(names.index("average")))
    lines = [_row("AUROC by", *(TITLES[key] for _, key in columns)), _row("", *(MODES[mode] for mode, _ in columns))]
    for name in names:
        cells = [numbers["auroc"][mode][key].get(name) for mode, key in columns]
        lines.append(_row(name, *(f"{cell['auroc']:.2f}" if cell else "" for cell in cells)))
    if numbers["breaks"]:
        lines += _breaks(numbers["breaks"], columns)
    if numbers["left out, files too short"]:
        lines.append(f"left out, because the files are too short: {', '.join(numbers['left out, files too short'])}")
    return "\n".join(lines)


def draw_areas(areas: Mapping[str, Any], out: Path) -> None:
    """Draw the AUROC of each set as a dot with its standard error, a panel for each score; chance is a line."""
    names = list(dict.fromkeys(name for by_score in areas.values() for name in by_score["energy"] if name != "average"))
    places = {name: len(names) - k for k, name in enumerate(names)}
    figure = plots.figure(6.4, 1.5 + 0.24 * len(names))
    for panel, (key, title) in enumerate(TITLES.items()):
        axes = plots.axes(figure, 1, 2, panel + 1, title=title, xlabel="AUROC", xlim=(-0.04, 1.04))
        axes.axvline(0.5, color=plots.GREY, linewidth=1)
        for index, (mode, by_score) in enumerate(areas.items()):
            cells = {name: cell for name, cell in by_score[key].items() if name in places}
            axes.errorbar(
                [cell["auroc"] for cell in cells.values()],
                [places[name] + 0.14 * (len(areas) - 1) * (1 - 2 * index) for name in cells],
                xerr=[cell["error"] for cell in cells.values()],
                label=MODES[mode],
                linestyle="none",
                markersize=5,
                linewidth=1,
                **plots.style(index),
            )
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks(list(places.values()), list(places) if panel == 0 else [""] * len(places))
        axes.set_ylim(0.4, len(names) + 0.6)
    if len(areas) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    plots.save(figure, out)


def draw_examples(sets: Mapping[str, np.ndarray], out: Path) -> None:
    """Draw the first pictures of every set of images, or a filmstrip of its first clip."""
    frames = next(iter(sets.values())).shape[1]
    tiles, captions = [], []
    for name, pixels in sets.items():
        shown = pixels[:1] if frames > 1 else pixels[np.arange(SHOWN) % len(pixels)]
        tiles += list(media.filmstrips(shown))
        captions += [name] * len(shown)
    scale = max(1, round((64 if frames > 1 else 96) / tiles[0].shape[1]))
    columns = 2 if frames > 1 else SHOWN
    media.write_png(out, media.grid(np.stack(tiles), captions, columns, scale)[0])


def draw_frames(scores: Mapping[str, Mapping[str, Mapping[str, Tensor]]], out: Path, cuts: Sequence[str]) -> None:
    """Draw frame scores of clips with a cut and of intact clips: median and middle half, with the cut marked."""
    figure = plots.figure(6.4, 3.2)
    mode = next(iter(scores))
    for panel, (key, title) in enumerate(TITLES.items()):
        axes = plots.axes(figure, 1, 2, panel + 1, title=title, xlabel="frame")
        for index, name in enumerate(name for name in ("held-out clips", *cuts) if name in scores[mode]):
            values = scores[mode][name][key].double().numpy()
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
            style = plots.style(index)
            axes.fill_between(range(len(middle)), low, high, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(middle, label=name, markersize=4, **style)
        axes.axvline(values.shape[1] // 2 - 0.5, color=plots.GREY, linestyle="--", linewidth=1)
        axes.set_xticks(range(0, values.shape[1], max(1, values.shape[1] // 8)))
        axes.set_ylabel("score of a frame" if panel == 0 else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, out)


def _breaks(breaks: Mapping[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    """Lines on how often the scores find the cut; the same frame of intact clips is the comparison."""
    first, lines = next(iter(breaks.values())), []
    for kind, text in (("jump", "largest jump"), ("peak", "highest score")):
        lines += ["", f"{text} at the cut before frame {first['frame']} (chance {first['chance'][kind]:.0%})"]
        for name in first[kind]:
            lines.append(_row(f"  {name}", *(f"{breaks[mode][kind][name][key]:.0%}" for mode, key in columns)))
    return lines


def _row(text: str, *values: str) -> str:
    return f"{text:22}" + "".join(f"{value:>16}" for value in values)
