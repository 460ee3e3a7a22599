"""The model card of an export: what it is, what it learned from, how it was measured, how to use it, and its limits.

No path of the machine goes into a card: an export is made to be shared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from eqm_video.codec import BUNDLED, PIXELS
from eqm_video.models.presets import preset_name
from eqm_video.output import html
from eqm_video.output.tables import aligned
from eqm_video.system.claims import is_marked
from eqm_video.system.files import MARK, write_text
from eqm_video.training.config import Config, to_tree
from eqm_video.training.report import RunFiles, short
from eqm_video.training.strict_yaml import flatten
from eqm_video.wording import counted, duration

CARD = "README.md"
SAMPLES = ("samples.gif", "samples.png")  # the last preview, beside the card
OBJECTIVES = {"eqm": "Equilibrium Matching", "forcing": "Equilibrium Forcing", "flow": "flow matching"}
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
    config, data, seconds = run.config, run.record.get("data", {}), run.curve("seconds")[1]
    frames, size, codec = config.data.frames, config.data.size, config.codec.name
    licences = {BUNDLED: "is part of eqm-video (MIT)", PIXELS: "has no weights"}
    return _card(
        "run",
        run.name,
        videos=frames > 1,
        clips=f"clips of {frames} frames of {size} px" if frames > 1 else f"images of {size} px",
        objective=OBJECTIVES[config.objective_name],
        codec=_codec(config),
        licence=licences.get(codec, "has its own licence"),
        picture=picture,
        preview_step=None if picture is None else int(run.previews[-1].stem.rpartition("_")[2]),
        config=config,
        data=data,
        labels=data.get("labels") or [],
        steps=run.lines[-1]["step"] if run.lines else 0,
        time=duration(seconds[-1]) if seconds else "",
        processor=run.record.get("machine", {}).get("processor"),
        recipe=_recipe(config),
        base=None if config.train.init_from is None else folder_name(Path(config.train.init_from)),
        best=best,
        numbers=_numbers(run, best),
    )


def merged_card(name: str, base: str, adapters: str, scale: float, *, videos: bool) -> str:
    """The card of a model whose adapters were merged by `eqm-video merge`.

    name: its own; base, adapters: the names of the two that it is made of; scale: strength of the adapters; videos:
    whether its samples have several frames.
    """
    return _card("merged", name, base=base, adapters=adapters, scale=scale, videos=videos)


def converted_card(
    name: str, source: str, codec: str, network: ModelMixin, *, size: str, frames: int, named: bool
) -> str:
    """The card of an export that `eqm-video convert` made of the weights in the file `source`.

    size: of its samples in pixels, as text; frames: of its clips; named: whether its labels have names.
    """
    config = network.config
    sizes = (config.hidden_size, config.depth, config.num_heads, config.patch_size)
    return _card(
        "converted",
        name,
        source=source,
        codec=_codec_name(codec),
        network=preset_name(*sizes) or "width {}, depth {}, {} heads, patch {}".format(*sizes),
        clips=f"clips of {frames} frames of {size} px" if frames > 1 else f"images of {size} px",
        videos=frames > 1,
        labels=config.num_labels,
        named=named,
        told=config.conditioned_on_gamma,
    )


def _card(template: str, name: str, **values: Any) -> str:
    """A card of assets/cards, filled in."""
    return html.filled(f"cards/{template}.md", name=name, counted=counted, mark=MARK.decode(), **values) + "\n"


def folder_name(path: Path) -> str:
    """The name of a model's or of adapters' folder: that of the run where they lie in its export."""
    names = [part for part in path.resolve().parts if part not in ("export", "adapters", "checkpoints")]
    return names[-1]


def _recipe(config: Config) -> str:
    """A table of the recipe's values that differ from the defaults, without paths of the machine."""
    default, tree = dict(flatten(to_tree(Config()))), dict(flatten(to_tree(config)))
    tree["codec.name"] = _codec(config)
    rows = [[f"`{key}`", short(value)] for key, value in tree.items() if value != default.get(key) and key not in PATHS]
    return aligned([["key", "value"], *rows])


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


def _codec(config: Config) -> str:
    return _codec_name(config.codec.name)


def _codec_name(name: str) -> str:
    """The name of a codec without the folders above it; a hub id keeps its owner."""
    return name if name.count("/") == 1 and not Path(name).exists() else Path(name).name
