"""What each metric sees: real clips with one flaw each, against other real clips, for every metric and feature.

    python benchmarks/what_metrics_see.py FOLDER --out DIR [--features readings random ...]
    python benchmarks/what_metrics_see.py FOLDER --out DIR --features mobilenet --weights nsfwjs-4.3.0.tgz

FOLDER holds videos in class folders whose names carry a person or scene, v_Class_gXX_cYY. Clips of one half of the
people are the real set; those of the other half are compared with it, once as they are and once with every flaw. A cell
is the change of the value that a flaw makes, in half-widths of the 95 % interval of the unaltered clips' value: beyond
1 (or below -1) the metric sees the flaw at this number of clips. `readings` are the metrics that need no network.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageFilter

from eqm_video.data.datasets import open_data
from eqm_video.evaluation.clips import Arrays, jpeg
from eqm_video.evaluation.measure import Meter
from eqm_video.evaluation.report import Judgement
from eqm_video.features.feature import Input
from eqm_video.features.registry import open_feature
from eqm_video.metrics.metric import Paired, Statistics
from eqm_video.metrics.registry import metrics, title_of
from eqm_video.output import plots
from eqm_video.system import files, machine

FRAMES, SIZE, EACH = 16, 64, 3  # of a clip; clips of a video
LONG = 2 * FRAMES


def noise(clips: np.ndarray) -> np.ndarray:
    """Gaussian noise of 20 of 255."""
    return (clips + np.random.default_rng(0).normal(0, 20, clips.shape)).clip(0, 255).astype(np.uint8)


def blur(clips: np.ndarray) -> np.ndarray:
    """A Gaussian blur of 1.5 pixels."""
    return by_frame(clips, lambda frame: Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.5)))


def by_frame(clips: np.ndarray, change: Callable[[np.ndarray], object]) -> np.ndarray:
    """Each frame changed."""
    frames = [np.asarray(change(frame)) for frame in clips.reshape(-1, *clips.shape[2:])]
    return np.stack(frames).reshape(clips.shape)


def freeze(clips: np.ndarray) -> np.ndarray:
    """The second half stands still."""
    held = clips.copy()
    held[:, FRAMES // 2 :] = held[:, FRAMES // 2 - 1 : FRAMES // 2]
    return held


def flicker(clips: np.ndarray) -> np.ndarray:
    """Every other frame brighter by 20 of 255."""
    lit = clips.astype(int)
    lit[:, ::2] += 20
    return lit.clip(0, 255).astype(np.uint8)


def splice(clips: np.ndarray) -> np.ndarray:
    """The second half of another clip."""
    cut = clips.copy()
    cut[:, FRAMES // 2 :] = np.roll(clips, EACH + 1, axis=0)[:, FRAMES // 2 :]
    return cut


def shuffle(clips: np.ndarray) -> np.ndarray:
    """Frames in a random order."""
    rng = np.random.default_rng(0)
    return np.stack([clip[rng.permutation(FRAMES)] for clip in clips])


def quantise(clips: np.ndarray) -> np.ndarray:
    """Four levels of each colour."""
    return ((clips // 64) * 64 + 32).astype(np.uint8)


def encode(clips: np.ndarray) -> np.ndarray:
    """H.264 at a constant rate factor of 35 and back."""
    again = []
    for clip in clips:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "35"})
            stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
            for frame in clip:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file) as container:
            again.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    return np.stack(again)


FLAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "JPEG 20": lambda clips: jpeg(20)(torch.from_numpy(clips)).numpy(),
    "four levels a colour": quantise,
    "H.264, crf 35": encode,
    "half frozen": freeze,
    "flicker": flicker,
    "splice": splice,
    "frames shuffled": shuffle,
    "reversed": lambda clips: clips[:, ::-1].copy(),
}


def read(folder: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Long clips (N, 2T, H, W, 3), with the label and the group of each."""
    data = open_data("videos", folder, frames=LONG, frame_interval=1, size=SIZE, short="skip")
    clips, labels, groups = [], [], []
    for index in range(len(data)):
        last = data.length(index) - LONG
        for place in range(EACH):
            clips.append(data.clip(index, start=place * last // (EACH - 1)).pixels.movedim(1, -1).numpy())
            name, label, _ = data.files[index]
            labels.append(data.labels[label])
            groups.append(Path(name).stem.split("_")[2])
    return np.stack(clips), labels, groups


def sets(folder: Path) -> tuple[Arrays, dict[str, Arrays]]:
    """The real set, and the other half with every flaw; "as they are" is without one."""
    clips, labels, groups = read(folder)
    half = set(sorted(set(groups))[::2])
    chosen = np.array([group in half for group in groups])
    names = np.array(labels, dtype=object)
    short = clips[:, :FRAMES]
    real = Arrays(short[chosen], list(names[chosen]))
    others, own = short[~chosen], list(names[~chosen])
    long = clips[~chosen]
    made = {"as they are": Arrays(others, own)}
    made |= {name: Arrays(flaw(others), own) for name, flaw in FLAWS.items()}
    made["twice as fast"] = Arrays(long[:, ::2], own)
    made["half as fast"] = Arrays(np.repeat(others[:, : FRAMES // 2], 2, axis=1), own)
    every = sorted(set(own))
    made["wrong labels"] = Arrays(others, [every[(every.index(label) + 1) % len(every)] for label in own])
    single = [k for k, label in enumerate(own) if label == every[0]]
    made["one class alone"] = Arrays(
        np.concatenate([others[single]] * len(every)), [every[0]] * len(single) * len(every)
    )
    return real, made


def measure(folder: Path, features: list[str], weights: Path | None, file: Path) -> None:
    """For each feature, metric and flaw: the value, and the change in half-widths of the unaltered value's interval.

    The record `file` is written after each feature; those that are in it already stay.
    """
    real, made = sets(folder)
    labels = sorted(set(real.labels))
    about = {"clips": len(made["as they are"]), "real": len(real), "frames": FRAMES, "size": SIZE}
    table: dict[str, dict[str, dict[str, float]]] = json.loads(file.read_text())["table"] if file.is_file() else {}
    for feature in features:
        network = None if feature == "readings" else open_feature(feature, Input(), weights)
        chosen = [metric for metric in metrics().values() if fits(metric, network)]
        meter = Meter(chosen, network, FRAMES // 2, torch.device("cpu"), 16)
        plain = replace(meter, metrics=[metric for metric in chosen if not isinstance(metric, Paired)])
        reference = plain.measure(real, labels, "real clips")
        judgement = Judgement(Statistics(), feature, FRAMES, redraws=200, permutations=0, floors=False)
        results = {}
        for name, clips in made.items():
            truth = made["as they are"] if name in ("as they are", *FLAWS, "twice as fast", "half as fast") else None
            used = meter if truth is not None else plain
            measured = used.measure(clips, labels, f"{feature}: {name}", truth)
            judged = judgement if name == "as they are" else replace(judgement, redraws=0)
            results[name] = {metric.name: judged.judge(metric, measured, reference) for metric in used.metrics}
            print(feature, name, {key: round(value["value"], 6) for key, value in results[name].items()}, flush=True)
        for metric in chosen:
            low, high = results["as they are"][metric.name]["interval"]
            value, half = results["as they are"][metric.name]["value"], max((high - low) / 2, 1e-12)
            row = {name: result[metric.name]["value"] for name, result in results.items() if metric.name in result}
            title = title_of(metric, feature, FRAMES)
            table[title] = {name: {"value": each, "change": (each - value) / half} for name, each in row.items()}
        files.write_json(file, {**about, "table": table, "machine": machine.describe()}, indent=1)


def fits(metric, network) -> bool:
    """Whether a metric is one of this network, or of the pixels where there is none."""
    parts = metric.needs & {"features", "spatial", "logits", "windows"}
    if metric.name in ("direction", "shape", "label"):  # of moving shapes alone
        return False
    if network is None:
        return not parts
    return bool(parts) and parts <= {"windows", *network.outputs}


def draw(result: dict[str, object], path: Path) -> None:
    """The table as a picture: what a metric sees is dark, and the number is the change in half-widths.

    Of PSNR and SSIM the values stand there: unaltered clips are perfect, and have no interval. Copies are left out: no
    flaw is one.
    """
    table = {title: row for title, row in result["table"].items() if not title.startswith("copies")}
    columns = dict.fromkeys(name for row in table.values() for name in row if name != "as they are")
    figure = plots.figure(1.0 + 0.62 * len(columns), 1.6 + 0.3 * len(table))
    axes = figure.subplots()
    shades, texts = np.full((len(table), len(columns)), np.nan), []
    for row, (title, cells) in enumerate(table.items()):
        for column, name in enumerate(columns):
            if name not in cells:
                continue
            value, change = cells[name]["value"], cells[name]["change"]
            paired = title in ("PSNR", "SSIM")
            shades[row, column] = 0.3 if paired else np.log1p(min(abs(change), 100)) / np.log(101)
            text = f"{value:.3g}" if paired else f"{change:+.1f}" if abs(change) < 10 else f"{change:+.0f}"
            texts.append((column, row, text, paired or abs(change) > 1))
    axes.imshow(np.ma.masked_invalid(shades), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for column, row, text, seen in texts:
        colour = "white" if shades[row, column] > 0.7 else "black" if seen else "0.65"
        weight = "bold" if seen else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(table)), table, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    plots.save(figure, path)


def main() -> None:
    """Measure, write the record, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", nargs="+", default=["readings", "random", "pixels", "transnet"])
    parser.add_argument("--weights", type=Path, help="the file of a feature that has one")
    parser.add_argument("--drawn", action="store_true", help="draw the record that is there already")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "what_metrics_see.json"
    if not options.drawn:
        measure(options.folder, options.features, options.weights, record)
    draw(json.loads(record.read_text()), options.out / "what_metrics_see.png")


if __name__ == "__main__":
    main()
