"""Clips to rows of numbers: features and readings, on all processes, in an order of their own; and their cache.

The clips are cut into blocks of one batch, which the processes share, so that their number changes nothing. The rows
are then put in the order of the clips' hashes: the order in which the clips came changes nothing either.

Legend: N clips, B clips of a batch, T frames, D dimensions of a feature.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.evaluation.clips import ClipSource
from eqm_video.features.feature import Feature
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Paired, Reading
from eqm_video.system import files, waits

PARTS = ("features", "logits", "spatial", "windows")


def processes() -> tuple[int, int]:
    """This process's number and how many share the work; (0, 1) where none were started together."""
    started = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if started else (0, 1)


@dataclass(frozen=True)
class Meter:
    """The measures of each clip: the parts that the metrics need, by one feature network (None: none needs it)."""

    metrics: Sequence[Metric]
    feature: Feature | None
    window_frames: int
    device: torch.device
    batch_size: int

    @property
    def needed(self) -> set[str]:
        """The outputs of the network that some metric reads."""
        return {part for metric in self.metrics for part in metric.needs} & set(PARTS)

    def check(self, shape: tuple[int, int, int]) -> None:
        """UserError where clips of (T, H, W) are too short for a metric or the network, or an output is missing."""
        frames = shape[0]
        long = [metric for metric in self.metrics if frames < metric.least_frames]
        if long:
            rest = [metric.name for metric in self.metrics if metric not in long]
            names, least = " ".join(metric.name for metric in long), max(metric.least_frames for metric in long)
            raise UserError(
                f"--metrics {names} needs clips of {least} frames, and these have {frames}: "
                + (f"type --metrics {' '.join(rest)}" if rest else "type others, such as mmd")
            )
        if self.feature is None or not self.needed:
            return
        if frames < self.feature.least_frames:
            least = self.feature.least_frames
            raise UserError(
                f"the feature {self.feature.name} needs clips of {least} frames, and these have {frames}: type "
                "--features random or pixels, which need a single one"
            )
        outputs = self.feature.outputs
        missing = set() if outputs is None else (self.needed & {"logits", "spatial"}) - set(outputs)
        if missing:
            wanting = [metric.name for metric in self.metrics if metric.needs & missing]
            raise UserError(
                f"--metrics {' '.join(wanting)}: the feature {self.feature.name} has no {', '.join(missing)}"
            )
        if "windows" in self.needed and frames < 2 * self.window_frames:
            raise UserError(
                f"--metrics over-time needs clips of two windows of {self.window_frames} frames, and these have "
                f"{frames}"
            )

    @torch.inference_mode()
    def rows(self, clips: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
        """Measures of clips (B, T, H, W, 3), each (B, ...) on the CPU; with true clips, comparisons with them."""
        rows: dict[str, Tensor] = {}
        for metric in self.metrics:
            if isinstance(metric, Reading):
                rows[f"reading.{metric.name}"] = metric.read(clips).cpu()
            elif isinstance(metric, Paired) and truth is not None:
                rows[f"reading.{metric.name}"] = metric.compare(clips, truth).cpu()
        if self.feature is not None and self.needed:
            on_device = clips.to(self.device)
            if self.needed - {"windows"}:
                outputs = self.feature(on_device)
                for part in self.needed - {"windows"}:
                    if part not in outputs:
                        raise UserError(f"the feature {self.feature.name} has no output named {part}")
                    rows[part] = outputs[part].float().cpu()
            if "windows" in self.needed:
                pieces = [
                    piece for piece in on_device.split(self.window_frames, 1) if piece.shape[1] == self.window_frames
                ]
                rows["windows"] = torch.stack([self.feature(piece)["features"].float().cpu() for piece in pieces], 1)
        bad = [name for name, value in rows.items() if not value.isfinite().all()]
        if bad:
            raise UserError(f"{', '.join(bad)} of some clips are infinite or NaN: the network does not fit its input")
        return rows

    def measure(
        self, source: ClipSource, labels: Sequence[str], what: str, truth: ClipSource | None = None
    ) -> Measured:
        """All clips of a source, measured; `labels` numbers the labels. The same on every process."""
        self.check(source.shape)
        rank, world = processes()
        blocks = [
            range(first, min(first + self.batch_size, len(source))) for first in range(0, len(source), self.batch_size)
        ]
        mine, parts = blocks[rank::world], []
        with waits.bar(what=what, total=len(source), unit="clip", shown=rank == 0) as bar:
            for block in mine:
                clips = source.read(block)
                pair = None if truth is None else truth.read(block)
                parts.append((list(block), [_hash(clip) for clip in clips], self.rows(clips, pair)))
                bar.update(len(block) * min(world, len(blocks)) if world > 1 else len(block))
        if world > 1:
            every: list[list[tuple[list[int], list[str], dict[str, Tensor]]]] = [[] for _ in range(world)]
            dist.all_gather_object(every, parts)
            parts = [part for each in every for part in each]
        parts.sort(key=lambda part: part[0][0])
        return _assemble(parts, source, labels)


def _assemble(
    parts: Sequence[tuple[list[int], list[str], dict[str, Tensor]]], source: ClipSource, labels: Sequence[str]
) -> Measured:
    """One set from the blocks, its rows in the order of the clips' hashes."""
    numbers = [row for block, _, _ in parts for row in block]
    hashes = [text for _, texts, _ in parts for text in texts]
    tensors = {name: torch.cat([rows[name] for _, _, rows in parts]) for name in parts[0][2]}
    places = {label: number for number, label in enumerate(labels)}
    ids = [places.get(source.labels[row], -1) for row in numbers]
    order = sorted(range(len(numbers)), key=lambda place: (hashes[place], ids[place], numbers[place]))
    picked = torch.tensor(order)
    readings = {
        name.removeprefix("reading."): value[picked] for name, value in tensors.items() if name.startswith("reading.")
    }
    return Measured(
        sources=torch.tensor([source.sources[numbers[place]] for place in order]),
        rows=torch.arange(len(order)),
        labels=torch.tensor([ids[place] for place in order]),
        pixels=torch.tensor([int.from_bytes(bytes.fromhex(hashes[place])[:8], "big", signed=True) for place in order]),
        readings=readings,
        label_names=tuple(labels),
        **{part: tensors[part][picked] for part in PARTS if part in tensors},
    )


def _hash(clip: Tensor) -> str:
    return hashlib.blake2b(clip.contiguous().numpy().data, digest_size=16).hexdigest()


# Cache --------------------------------------------------------------------------------------------------------------


def cached(folder: Path | None, key: dict[str, Any], measure: Callable[[], Measured]) -> tuple[Measured, bool]:
    """The result of `measure`, kept in `folder` as safetensors under the hash of `key`; and whether it was there.

    A file that is damaged, or of another key, is measured again and replaced. The first process alone reads and writes
    the folder: the others may be on machines that have another one, and all measure, or none.
    """
    if folder is None:
        return measure(), False
    text = json.dumps(key, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    first = processes()[0] == 0
    kept = _from_first(_read_cache(path, text) if first else None)
    if kept is not None:
        return replace(kept, label_names=tuple(key["labels"])), True
    measured = measure()
    if first:
        tensors = {f"readings.{name}": value for name, value in measured.readings.items()}
        for name in ("sources", "rows", "labels", "pixels", *PARTS):
            if (value := getattr(measured, name)) is not None:
                tensors[name] = value
        content = {name: value.contiguous() for name, value in tensors.items()}
        try:
            files.write_file(path, lambda aside: save_file(content, aside, metadata={"key": text}))
        except UserError as error:  # the measures are there: only the next run has to make them again
            warnings.warn(f"measures of the real clips are not kept: {error}", stacklevel=2)
    return measured, False


def _from_first(value: Measured | None) -> Measured | None:
    """The first process's value, on every process."""
    if processes()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _read_cache(path: Path, text: str) -> Measured | None:
    """The set that was kept, or None."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != text:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except (OSError, safetensors.SafetensorError):
        return None
    readings = {
        name.removeprefix("readings."): value for name, value in tensors.items() if name.startswith("readings.")
    }
    return Measured(
        readings=readings, **{name: value for name, value in tensors.items() if not name.startswith("readings.")}
    )
