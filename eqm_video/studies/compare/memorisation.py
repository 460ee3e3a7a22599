"""Does the model copy? Distances to the nearest training clip, and to the runner-up from another file.

The criterion is `metrics.nearest.are_copies`, on pixels. Real clips give the scale: it calls some of them copies, too.

Legend: N clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqm_video.data.datasets import ClipSet, VideoSet, open_data
from eqm_video.errors import UserError
from eqm_video.metrics.nearest import COPY, NearestClips, are_copies
from eqm_video.output import plots

SHOWN = ("samples", "held-out clips", "real clips to another file")  # the curves of the picture, where there are such


def open_held_out(data: ClipSet, root: Path, fold: int | None) -> ClipSet | None:
    """Test clips beside the training clips `data` of `root`; None, with a printed reason, if there are none."""
    kind = "videos" if isinstance(data, VideoSet) else "images"
    settings = {"frames": data.frames, "frame_interval": data.frame_interval, "size": data.size}
    try:
        return open_data(kind, root, split="test", fold=fold or 1, **settings)
    except UserError as error:
        print(f"no held-out clips beside the samples: {str(error).splitlines()[0]}")
        return None


def summarise(searches: Mapping[str, NearestClips]) -> dict[str, Any]:
    """The criterion, and the share of each set of clips that meets it. Clips without a second source are left out."""
    shares = {}
    for name, search in searches.items():
        ratio = search.ratio[search.ratio.isfinite()]
        if len(ratio):
            below = int(are_copies(search.rms, search.second_rms).sum())
            median = float(ratio.median())
            shares[name] = {"memorised": below, "share": below / len(ratio), "count": len(ratio), "median": median}
    criterion = "distance to the nearest training clip < 1/3 of that to the nearest of another file"
    return {"criterion": criterion, "source": "Yoon et al. 2023; Gu et al. 2025, arXiv 2310.02664", **shares}


def table(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for the screen."""
    rows = {name: share for name, share in summary.items() if isinstance(share, dict)}
    return [
        "memorised: nearer to one training clip than a third of the way to the next file's",
        *(f"  {name}: {row['memorised']} of {row['count']}, median {row['median']:.2f}" for name, row in rows.items()),
    ]


def draw(searches: Mapping[str, NearestClips], summary: Mapping[str, Any], path: Path) -> None:
    """Draw cumulative shares of clips over the distance to the nearest training clip, and over the ratio of the two.

    The first axis shows the farthest sample too, unless it is more than four times as far as any real clip.
    """
    figure = plots.figure(6.4, 3.4)
    left = plots.axes(figure, 1, 2, 1, xlabel="RMS pixel difference (of 255)", title="to the nearest training clip")
    right = plots.axes(figure, 1, 2, 2, xlabel="nearest / second-nearest", title="how alone the nearest is")
    left.set_ylabel("share of clips at or below")
    for index, name in enumerate(name for name in SHOWN if name in searches):
        look = {"color": plots.style(index)["color"], "linestyle": ("-", "--", "-.")[index]}
        search = searches[name]
        share = f", {summary[name]['share']:.0%} copies" if name in summary else ""
        for axes, values in ((left, search.rms), (right, search.ratio)):
            values = values[values.isfinite()]
            if len(values):
                axes.ecdf(values.numpy(), label=f"{name} ({len(search.rms)}{share})", **look)
    right.axvline(COPY, color=plots.GREY, linewidth=1)
    right.annotate("below 1/3: \na copy ", (COPY, 0.5), ha="right", color=plots.GREY)
    real = max(float(search.rms.max()) for name, search in searches.items() if name != "samples")
    farthest = float(searches["samples"].rms.max())
    left.set_xlim(0, max(1.5 * real, min(1.1 * farthest, 4 * real)))
    right.set_xlim(0, 1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    plots.save(figure, path)
