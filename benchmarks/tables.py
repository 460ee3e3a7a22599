"""The tables of docs/scaling.md and docs/training.md that are written from the records in benchmarks/records/speed.

    python benchmarks/tables.py

A table stands between `<!-- speed NAME -->` and `<!-- end -->`; NAME is a function here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records" / "speed"
PAGES = (ROOT / "docs" / "scaling.md", ROOT / "docs" / "training.md")
MARK = re.compile(r"(<!-- speed (\w+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def load(name: str) -> list[dict[str, Any]]:
    """The rows of a record."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; text stands as it is, and numbers with three digits."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("%", " %")


def steps() -> str:
    """Training steps of S/2 beside a peer's."""
    heads = ("network", "clips", "frames", "TFLOP", "clips/s", "tokens/s", "TFLOP/s", "of the peak")
    heads += ("GiB moved, unfused",)
    keys = ("module", "batch", "frames", "tflop", "clips_per_second", "tokens_per_second", "tflops", "of_peak")
    rows = [
        [row[key] if key != "of_peak" else f"{row[key]:.0%}" for key in keys] + [row["gib_moved_unfused"]]
        for row in load("train_step_s2") + load("train_step_images")
    ]
    return table(heads, rows)


def shapes() -> str:
    """Tokens a second and the share of the peak by preset and frames."""
    rows = load("train_step_shapes")
    frames = sorted({row["frames"] for row in rows})
    found = {(row["preset"], row["frames"]): row for row in rows}
    cells = [
        [name, *(_speed(found.get((name, count))) for count in frames)]
        for name in dict.fromkeys(row["preset"] for row in rows)
    ]
    return table(("tokens/s (of the peak)", *(f"{count} frames" for count in frames)), cells)


def _speed(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['tokens_per_second']:,.0f} ({row['of_peak']:.0%})"


def sampling() -> str:
    """Descents of S/2."""
    heads = ("frames", "guidance", "clips/s", "TFLOP/s", "of the peak", "time over that of bare calls")
    rows = [
        [
            row["frames"],
            row["guidance"],
            row["clips_per_second"],
            row["tflops"],
            f"{row['of_peak']:.0%}",
            row["of_bare"],
        ]
        for row in load("sample_s2")
    ]
    return table(heads, rows)


def keeping() -> str:
    """Descents that compute modulations once beside those that do so at each step."""
    rows = [
        [row["preset"], row["frames"], row["guidance"], 1000 * row["seconds"] / row["steps"], row["of_anew"]]
        for name in ("sample_nano", "sample_s2_full")
        for row in load(name)
    ]
    return table(("network", "frames", "guidance", "ms a step", "time over that of computing them again"), rows)


def memory() -> str:
    """Peaks of memory beside what a dry run says."""
    rows = []
    for row in load("memory") + load("memory_s2_full") + load("memory_nano"):
        clips = f"{row['batch']} clip{'s' * (row['batch'] > 1)} of {row['frames']}"
        case = f"{row['preset']}, {row['depth'] or 'all'} blocks, {clips}"
        cells = [case, row["recompute"], row["gib"], row["counted"], f"{row['gap']:+.0%}"]
        rows.append([*cells, row["gib_heap"], row["counted_heap"], f"{row['gap_heap']:+.0%}"])
    heads = ("", "recomputed", "tensors, GiB", "counted, GiB", "", "with the heap, GiB", "counted, GiB", "")
    return table(heads, rows)


def reading() -> str:
    """Milliseconds a clip with each reader."""
    heads = (
        "file",
        "frames a keyframe",
        "every",
        "decord, ms",
        "PyAV, ms",
        "PyAV before, ms",
        "farthest apart, of 255",
    )
    keys = ("file", "group", "interval", "ms decord", "ms pyav", "ms before", "largest difference")
    rows = [[row[key] for key in keys] for row in load("reading")]
    return table(heads, rows)


def resizing() -> str:
    """Fréchet distances under both ways to resize."""
    heads = ("clips", "n", "new over old side", "feature", "exact", "exact against torch", "change", "range of changes")
    rows = [
        [
            row["set"],
            row["samples"],
            f"{row['scale']:.2f}",
            row["feature"],
            f"{row['exact']:.4f}",
            f"{row['moved']:.4f}",
            f"{row['gap'] / row['exact']:+.2%}",
            f"{row['least gap'] / row['exact']:+.1%} to {row['largest gap'] / row['exact']:+.1%}",
        ]
        for row in load("resizing")
        if row["distance"] == "frechet"
    ]
    return table(heads, rows)


def loading() -> str:
    """The data path alone."""
    heads = ("latents", "pages before", "a batch", "clips/s", "clips/s of CPU time", "MiB/s", "seconds to open")
    keys = ("clips_per_second", "clips_per_second_of_cpu", "mib_per_second", "seconds_to_open")
    said = {None: "", "read": "in memory", "dropped": "on the disk alone"}
    rows = [
        [row["latents"], said[row["pages"]], " x ".join(map(str, row["batch"])), *(row[key] for key in keys)]
        for row in load("loader")
    ]
    return table(heads, rows)


def encoding() -> str:
    """The codec in both precisions."""
    heads = ("encoder", "frames/s", "PSNR of the decode, dB", "bf16 against fp32, dB")
    rows = [
        [row["dtype"], row["frames_per_second"], f"{row['psnr_decoded']:.2f}", f"{row['psnr_apart']:.1f}"]
        for row in load("frames")
        if "dtype" in row
    ]
    return table(heads, rows)


def temporal() -> str:
    """Held-out loss of networks with attention in time in every block, and in every second one."""
    return _differences("held-out")


def temporal_tasks() -> str:
    """The same on video tasks. Parts of a row (direction, shape, nearness) are in the record alone."""
    return _differences("generation: both", "image-to-video: both", "continuation", "in-betweening", "inpainting")


def _differences(*names: str) -> str:
    found = [row for row in load("temporal")[1:] if row["measure"].startswith(names)]
    found = [row for row in found if not row["measure"].endswith((" near", " direction", " shape"))]
    rows = []
    for row in found:
        gap = row["difference"]
        between = f"{gap['low']:+.3f} to {gap['high']:+.3f}" if gap["low"] is not None else ""
        rows.append([row["measure"], f"{row['every block']:.3f}", f"{row['every second']:.3f}"])
        rows[-1] += [f"{gap['mean']:+.3f}", between, f"{gap['signs']} of {gap['runs']}"]
    return table(("", "every block", "every second", "difference", "95 %", "runs of its sign"), rows)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        steps,
        shapes,
        sampling,
        keeping,
        memory,
        reading,
        resizing,
        loading,
        encoding,
        temporal,
        temporal_tasks,
    )
}


def fill(text: str) -> str:
    """A document with every table as the records have it. KeyError for a table that does not exist."""
    return MARK.sub(lambda found: f"{found[1]}\n\n{TABLES[found[2]]()}\n\n{found[4]}", text)


def main() -> None:
    """Write the tables of all pages."""
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
