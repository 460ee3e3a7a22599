"""Every video task along the exact frame-wise field of a few clips, without training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqm_video.errors import UserError
from eqm_video.options import narrower
from eqm_video.output.tables import aligned
from eqm_video.samplers import NAG
from eqm_video.sampling.option_groups import Filmed, Many, Seeded, Shaped, Stepping, Stopping
from eqm_video.studies.oracle.pictures import draw_film
from eqm_video.studies.oracle.runs import DECAY, Runs, moving_clips, tasks
from eqm_video.studies.study import Report, Study
from eqm_video.system import machine, waits

MU = 0.35
LARGEST_STEP = 0.045  # NAG at mu = 0.35 is stable about data up to step size 0.0588


@dataclass(frozen=True, kw_only=True)
class Oracle(Study, Many, Shaped, Stepping, Stopping, Seeded, Filmed, group="look"):
    """Every video task along the exact field of a few clips, without any training.

    Each clip shows a coloured shape on a torus. It starts in the middle and travels half the world to the right, left,
    down or up. All clips share their first frame, and opposite directions share the last frame: the clip at which a
    descent ends shows whether it used the known frames. A descent from noise along the exact field with a gamma for
    each frame ends at a clip of the set that agrees with the known frames; if there are several, the start noise picks
    one of them. For comparison there is the exact field with one gamma for the whole clip, which has never seen clean
    frames beside noise.

    oracle.gif shows some descents; oracle.json has the ends of all, and their evaluations. Every task is descended from
    --num-samples noises by NAG with mu 0.35, in a square world of --size pixels, 8 to 64.
    """

    num_samples: int = narrower(32, least=2)
    frames: int = narrower(8, least=5, most=16)
    size: tuple[int, int] = (16, 16)
    steps: int = 80
    step_size: float = narrower(0.01, most=LARGEST_STEP, words=(), help="step size eta")
    tolerance: float = 0.1

    def check(self) -> None:
        """UserError unless the world is square, and small enough for an exact field."""
        height, width = self.size
        if height != width or not 8 <= height <= 64:
            raise UserError(
                f"--size is {height}x{width}: it must be a whole number from 8 to 64, the side of a square world"
            )

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table by name: tasks."""
        return {"tasks": as_table(numbers["tasks"])}

    def run(self) -> Report:
        """Descend and measure task by task."""
        began = time.monotonic()
        clips, names = moving_clips(self.size[0], self.frames)
        rule = NAG(self.step_size, MU)
        results, strips = {}, []
        for task in waits.bar(tasks(self.frames), "every task", unit="task"):
            runs = Runs(clips, task, rule, self)
            ends = runs.ends()
            results[task.name] = runs.measure(names, ends)
            strips += runs.strips(names, ends)
        numbers = {
            "settings": {
                "clips": names,
                "size": self.size[0],
                "frames": self.frames,
                "decay": repr(DECAY),
                "rule": repr(rule),
                "steps": self.steps,
                "tolerance": self.tolerance,
                "seeds": self.num_samples,
                "first_seed": self.seed,
                **machine.versions(),
                "machine": machine.describe(),
            },
            "tasks": results,
            "seconds": round(time.monotonic() - began, 1),
        }
        film = {} if self.no_film else {"oracle.gif": lambda path: draw_film(path, strips)}
        return Report(numbers, as_table(results), film)


def as_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tasks as a Markdown table: ends, evaluations, and the clips at which descents ended."""
    cells = [["task", "ends agree", "one gamma", "evaluations", "of a frame that stops", "of a clip", "ends"]]
    for name, result in results.items():
        other, stopping = result.get("one_gamma_for_the_clip"), result["per_frame_stopping"]
        unknown = max(1, len(result["start_gammas"]) - len(result["known"]))
        counts = sorted(result["chosen"].items(), key=lambda item: -item[1])
        cells.append(
            [
                name,
                f"{100 * result['at_an_agreeing_clip']:.0f} %",
                "-" if other is None else f"{100 * other['at_an_agreeing_clip']:.0f} %",
                f"{result['nfe']:.0f}",
                f"{sum(stopping['frame_nfe']) / unknown:.1f}",
                f"{stopping['nfe_together']:.1f}",
                ", ".join(f"{clip} {count}" for clip, count in counts[:4]) + (", ..." if len(counts) > 4 else ""),
            ]
        )
    return aligned(cells)
