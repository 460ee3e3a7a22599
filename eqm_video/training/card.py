"""The model card of an export: what it is, what it learned from, how it was measured, how to use it, and its limits.

No path of the machine goes into a card: an export is made to be shared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqm_video.codec import BUNDLED, PIXELS
from eqm_video.output.tables import aligned
from eqm_video.system.claims import is_marked
from eqm_video.system.files import MARK, write_text
from eqm_video.training.config import Config, to_tree
from eqm_video.training.progress import duration
from eqm_video.training.report import RunFiles, short
from eqm_video.training.strict_yaml import flatten
from eqm_video.wording import counted

CARD = "README.md"
SAMPLES = ("samples.gif", "samples.png")  # the last preview, beside the card
PATHS = ("data.root", "data.images", "held_out.root", "train.init_from", "run.dir", "track.project", "track.name")


def write_card(export: Path, run: RunFiles, old: Path | None = None, best: Mapping[str, Any] | None = None) -> None:
    """Write README.md and the last preview into the folder of an export.

    old: the export before this one. If it has files of these names that this package did not write, they are the
    user's, and no card is written. best: the state of the best evaluation if the export is of that step; such an export
    gets no picture, because the last preview shows other weights.
    """
    if old is not None and not own_files(old) and any((old / name).exists() for name in (CARD, *SAMPLES)):
        return
    picture = None
    if run.previews and best is None:
        picture = f"samples{run.previews[-1].suffix}"
        shutil.copyfile(run.previews[-1], export / picture)
    write_text(export / CARD, card(run, picture, best))


def own_files(export: Path) -> list[str]:
    """The files of a card in an export that a new one replaces; [] if one of them is the user's."""
    names = [name for name in (CARD, *SAMPLES) if (export / name).exists()]
    return names if all(is_marked(export / name) for name in names) else []


def card(run: RunFiles, picture: str | None = None, best: Mapping[str, Any] | None = None) -> str:
    """The text of a card, as Markdown. picture: the file of samples beside it. best: see `write_card`."""
    config = run.config
    videos = config.data.frames > 1
    parts = [_head(videos), f"# {run.name}", _what(run)]
    if picture is not None:
        step = int(run.previews[-1].stem.rpartition("_")[2])
        parts.append(f"![samples after {counted(step, 'step')}]({picture})")
    parts += ["## Use", _use(run), "## Data", _data(run), "## Training", _training(run)]
    if best is not None:
        parts.append(
            f"These are the weights after step {best['step']}, the best of the evaluations by {best['metric']}; the "
            "run went on."
        )
    if numbers := _numbers(run, best):
        parts += ["## Measured", numbers]
    parts += ["## Licence", _licence(config), "## Limits", _limits(run)]
    return "\n\n".join(parts) + f"\n\n<!-- {MARK.decode()} -->\n"


def merged_card(name: str, base: str, adapters: str, scale: float, *, videos: bool) -> str:
    """The card of a model whose adapters were merged by `eqm-video merge`.

    name: its own; base, adapters: the names of the two that it is made of; scale: strength of the adapters; videos:
    whether its samples have several frames.
    """
    text = (
        f"The weights of `{base}` with the adapters in `{adapters}` merged into them at strength {scale:g}. "
        "Data, training and licence are those of the model and of the adapters: whoever shares this says so here. "
        "Nothing has been measured on the merged weights."
    )
    use = (
        '```python\nfrom eqm_video import EqMPipeline\n\npipeline = EqMPipeline.from_pretrained("FOLDER")\n```\n\n'
        "On the command line: `eqm-video sample FOLDER --out samples`."
    )
    return "\n\n".join([_head(videos), f"# {name}", text, "## Use", use]) + f"\n\n<!-- {MARK.decode()} -->\n"


def folder_name(path: Path) -> str:
    """The name of a model's or of adapters' folder: that of the run where they lie in its export."""
    names = [part for part in path.resolve().parts if part not in ("export", "adapters", "checkpoints")]
    return names[-1]


def _head(videos: bool) -> str:
    task = "image-to-video" if videos else "unconditional-image-generation"
    tags = ["equilibrium-matching", "diffusers", "video-generation" if videos else "image-generation"]
    listed = "\n".join(f"- {tag}" for tag in tags)
    return f"---\nlibrary_name: eqm-video\npipeline_tag: {task}\ntags:\n{listed}\n---"


def _what(run: RunFiles) -> str:
    config, data = run.config, run.config.data
    name = {"eqm": "Equilibrium Matching", "forcing": "Equilibrium Forcing", "flow": "flow matching"}
    clips = f"clips of {data.frames} frames of {data.size} px" if data.frames > 1 else f"images of {data.size} px"
    return (
        f"A model of {clips}, trained by {name[config.objective_name]} "
        "([arXiv 2510.02300](https://arxiv.org/abs/2510.02300)) with eqm-video. One network generates, continues known "
        f"frames and fills in hidden ones. Network: {config.model.preset}; codec: {_codec(config)}."
    )


def _use(run: RunFiles) -> str:
    labels = run.record.get("data", {}).get("labels") or []
    words = f"labels=[{str(labels[0])!r}], " if labels else ""
    return (
        "```python\nfrom eqm_video import EqMPipeline\n\n"
        'pipeline = EqMPipeline.from_pretrained("FOLDER")  # this folder, or its OWNER/NAME on the hub\n'
        f"clips = pipeline({words}seeds=[0]).frames  # a list of PIL images for each clip\n```\n\n"
        "On the command line: `eqm-video sample FOLDER --out samples`. The sampler that the model recommends, its "
        "labels and its frame rate stand in `model_index.json`."
    )


def _data(run: RunFiles) -> str:
    record, data = run.record.get("data", {}), run.config.data
    if not {"size", "labels"} <= record.keys():
        return "Not recorded."
    count = counted(record["size"], data.kind[:-1])
    images = f", and {counted(record['images'], 'image')} beside them" if "images" in record else ""
    text = f"{count} with {counted(len(record['labels']), 'label')}{images}."
    if data.frames > 1:
        text += f" Clips of {data.frames} frames, {data.frame_interval} source frames apart, {data.size} px."
    return text


def _training(run: RunFiles) -> str:
    default, tree = dict(flatten(to_tree(Config()))), dict(flatten(to_tree(run.config)))
    rows = [[f"`{key}`", short(value)] for key, value in tree.items() if value != default.get(key) and key not in PATHS]
    rows = [[key, _codec(run.config) if key == "`codec.name`" else value] for key, value in rows]
    last, seconds = run.lines[-1]["step"] if run.lines else 0, run.curve("seconds")[1]
    where = run.record.get("machine", {})
    spent = f", {duration(seconds[-1])}" if seconds else ""
    text = f"{counted(last, 'step')} of {run.config.train.batch_size} samples{spent}"
    text += f", on {where['processor']}" if where.get("processor") else ""
    return f"{text}. Values of the recipe that differ from the defaults:\n\n{aligned([['key', 'value'], *rows])}"


def _numbers(run: RunFiles, best: Mapping[str, Any] | None = None) -> str:
    rows = []
    last = run.lines[-1]["step"] if run.lines else 0
    step = last if best is None else best["step"]
    for name, value in next((line for line in run.lines if line["step"] == step), {}).get("evaluate", {}).items():
        evaluate = run.config.train.evaluate
        how = f"{counted(evaluate.n, 'sample')} against held-out clips, features {Path(evaluate.features).name}; 95 % "
        how += f"{value['low']:.4g} to {value['high']:.4g}"
        how += f"; real clips: {value['floor']:.4g}" if "floor" in value else ""
        rows.append([name, f"{value['value']:.4g}", how])
    if best is not None:
        return aligned([["what", "value", "how"], *rows], left=3) if rows else ""
    if run.curve("loss")[1]:
        rows.append(["training loss", run.last("loss"), "mean squared error of the field, the last line of the log"])
    if run.curve("held_out/mean")[1]:
        held_out = run.config.held_out
        how = f"at most {counted(held_out.clips, 'clip')} that were not trained on, at gamma "
        rows.append(["held-out loss", run.last("held_out/mean"), how + ", ".join(f"{g:g}" for g in held_out.gammas)])
    return aligned([["what", "value", "how"], *rows], left=3) if rows else ""


def _licence(config: Config) -> str:
    codec = {BUNDLED: "is part of eqm-video (MIT)", PIXELS: "has no weights"}.get(
        config.codec.name, "has its own licence"
    )
    return (
        f"Not chosen yet: whoever shares the weights says so here. The licence of the data applies; the codec {codec}."
    )


def _limits(run: RunFiles) -> str:
    size = run.record.get("data", {}).get("size", 0)
    few = f" {size} files are few: samples may copy them." if 0 < size < 1000 else ""
    return (
        f"The model knows only what its data show.{few} `eqm-video compare SAMPLES --data FOLDER` shows every sample "
        "beside its nearest training clip. Nothing but the numbers above has been measured, and nothing is filtered."
    )


def _codec(config: Config) -> str:
    """The name of the codec without the folders above it; a hub id keeps its owner."""
    name: Any = config.codec.name
    return name if name.count("/") == 1 and not Path(name).exists() else Path(name).name
