"""The measurements of all runs as means with intervals, and as paired differences between targets.

Legend: S runs (seeds), N clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.metrics.intervals import compare, estimate, holm

Key = tuple[str, str, int]  # draw of gamma, target, seed
COMPARED = (  # (task, measure) whose differences between targets are tested
    ("generation", "both"),
    ("generation, no guidance", "both"),
    ("image-to-video", "both"),
    ("continuation", "error"),
    ("continuation, told", "error"),
    ("in-betweening", "error"),
    ("long video", "windows"),
)
LONG = "long video"
CURVES = {"generation": "both", "continuation, told": "error"}  # measured by the number of evaluations
BLIND, CONDITIONED = "eqf", "flow"  # targets that differ in nothing but whether the network is conditioned on gamma


def gather(measured: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that was measured, for each draw and target, as estimates; then the differences between targets."""
    keys = list(dict.fromkeys(key[:2] for key in measured))
    runs = {key: {k[2]: measured[k] for k in measured if k[:2] == key} for key in keys}
    gathered: dict[str, Any] = {name: {} for name in ("results", "curve", "field", "long", "differences")}
    for (draw, name), parts in runs.items():
        tables = {seed: {**part["tasks"], LONG: part["long"]["values"]} for seed, part in parts.items()}
        for part, nested in (
            ("results", list(tables.values())),
            ("curve", [part["curve"] for part in parts.values()]),
            ("field", [part["field"] for part in parts.values()]),
        ):
            gathered[part].setdefault(draw, {})[name] = estimates(nested)
        gathered["long"].setdefault(draw, {})[name] = _mean_windows([part["long"] for part in parts.values()])
        gathered["differences"].setdefault(draw, {})
    for draw in gathered["differences"]:
        gathered["differences"][draw] = differences({key[1]: runs[key] for key in keys if key[0] == draw})
    return gathered


def metrics(measured: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean, the least and the largest of the runs of each metric, by draw and target; and what real clips reach.

    A metric is one number for all clips of a run: its interval over clips is for `evaluate` to tell.
    """
    values: dict[str, Any] = {}
    for (draw, name, _), parts in measured.items():
        for metric, value in parts["metrics"]["values"].items():
            values.setdefault(draw, {}).setdefault(name, {}).setdefault(metric, []).append(value)
    spreads = {
        draw: {
            name: {
                metric: {"mean": sum(row) / len(row), "low": min(row), "high": max(row), "runs": len(row)}
                for metric, row in rows.items()
            }
            for name, rows in targets.items()
        }
        for draw, targets in values.items()
    }
    return {"values": spreads, **next(iter(measured.values()))["metrics"]["measures"]}


def differences(runs: Mapping[str, Mapping[int, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each of `COMPARED`, the difference of every two targets over the runs that both have.

    p is adjusted for the number of pairs (Holm).
    """
    listed: dict[str, list[dict[str, Any]]] = {}
    for task, measure in COMPARED:
        rows = []
        for first, other in combinations(runs, 2):
            seeds = sorted(runs[first].keys() & runs[other].keys())
            if seeds:
                pair = [_stack([_values(runs[name][seed], task, measure) for seed in seeds]) for name in (first, other)]
                rows.append({"one": first, "other": other, **asdict(compare(*pair))})
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p adjusted"] = adjusted
        listed[f"{task}: {measure}"] = rows
    return listed


def _values(run: Mapping[str, Any], task: str, measure: str) -> list[float]:
    return run["long"]["values"][measure] if task == LONG else run["tasks"][task][measure]


def _stack(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def estimates(runs: Sequence[Any]) -> Any:
    """The same nested mappings as those of every run, with an estimate in place of the runs' lists."""
    if isinstance(runs[0], Mapping):
        return {key: estimates([run[key] for run in runs]) for key in runs[0]}
    return asdict(estimate(_stack(runs)))


def _mean_windows(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the runs of the long videos, window by window, and the end of each window."""
    means = {key: _stack([run[key] for run in runs]).mean(dim=0).tolist() for key in ("right", "error", "drift")}
    return {"ends": runs[0]["ends"], **means}


# Losses -------------------------------------------------------------------------------------------------------------


def held_out(log: Path) -> dict[int, dict[str, float]]:
    """The held-out losses in a run's metrics.jsonl, by step; of a step that was logged twice, the last."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip("\0 ")]
    return {line["step"]: line["held_out"] for line in lines if "held_out" in line}


def loss_gaps(logs: Mapping[Key, Path]) -> dict[str, dict[str, list[float]]]:
    """By draw: held-out losses of `BLIND` and `CONDITIONED` over training, means over the runs that both have.

    gap: the first less the second, and its least and largest value among the runs, `gap low` and `gap high`.
    """
    losses_by_draw: dict[str, dict[str, list[float]]] = {}
    for draw in dict.fromkeys(key[0] for key in logs):
        seeds = sorted(
            {key[2] for key in logs if key[:2] == (draw, BLIND)}
            & {key[2] for key in logs if key[:2] == (draw, CONDITIONED)}
        )
        if not seeds:
            continue
        losses = {name: [held_out(logs[draw, name, seed]) for seed in seeds] for name in (BLIND, CONDITIONED)}
        steps = sorted(set.intersection(*(set(run) for runs in losses.values() for run in runs)))
        rows: dict[str, list[float]] = {"steps": [float(step) for step in steps], "runs": [float(len(seeds))]}
        for name, runs in losses.items():
            rows[name] = [sum(run[step]["mean"] for run in runs) / len(runs) for step in steps]
        gaps = [
            [blind[step]["mean"] - flow[step]["mean"] for blind, flow in zip(*losses.values(), strict=True)]
            for step in steps
        ]
        rows["gap"] = [sum(row) / len(row) for row in gaps]
        rows |= {"gap low": [min(row) for row in gaps], "gap high": [max(row) for row in gaps]}
        losses_by_draw[draw] = rows
    return losses_by_draw
