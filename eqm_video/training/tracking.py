"""What a run says about itself: a JSONL file always, Accelerate's trackers on request, running means in between."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import WandBTracker
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.gamma import MODES, gamma_modes

BINS = 11  # gamma in [0, 0.1), ... [0.9, 1), and the clean frames at exactly 1
KINDS = (*MODES, "image")  # of clips, in the log: how their gammas look, or that they are single frames


class Meter:
    """Means since the last line of the log, kept on the device so that a step does not wait for them.

    Every process adds its own part; `read` sums over processes. `state` makes a resumed run log what the uninterrupted
    one logs.
    """

    def __init__(self, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2 + 2 * BINS, dtype=exact, device=device)  # loss, forward passes, bins, counts
        self.kinds = torch.zeros(2, len(KINDS), dtype=exact, device=device)  # losses and counts of clips
        self.norms: list[float] = []

    @torch.no_grad()
    def add_loss(self, loss: Tensor, losses: Tensor, gamma: Tensor, weight: float = 1.0) -> None:
        """One forward pass: its scalar loss, and per frame the losses and gammas, both (B, T).

        `weight` of the pass in the mean loss: where passes differ in their number of clips.
        """
        bins = (gamma.flatten() * (BINS - 1)).long().clamp(0, BINS - 1)
        self.sums[0] += loss.detach() * weight
        self.sums[1] += weight
        self.sums[2 : 2 + BINS].index_add_(0, bins, losses.detach().flatten().to(self.sums.dtype))
        self.sums[2 + BINS :].index_add_(0, bins, torch.ones_like(bins, dtype=self.sums.dtype))
        kinds = gamma_modes(gamma) if gamma.shape[1] > 1 else torch.full_like(bins, KINDS.index("image"))
        self.kinds[0].index_add_(0, kinds, losses.detach().mean(dim=1).to(self.kinds.dtype))
        self.kinds[1].index_add_(0, kinds, torch.ones_like(kinds, dtype=self.kinds.dtype))

    def gather(self, accelerator: Accelerator) -> None:
        """Move the sums of all processes to the main one."""
        for sums in (self.sums, self.kinds) if accelerator.num_processes > 1 else ():
            total = accelerator.reduce(sums, reduction="sum")
            sums.copy_(total if accelerator.is_main_process else torch.zeros_like(total))

    def read(self, accelerator: Accelerator) -> dict[str, Any]:
        """Loss, gradient norm, loss by gamma (lower edge of each bin) and by kind of clip since the last reading.

        Then it starts afresh. A clip's loss is the mean over its frames, the given ones among them.
        """
        self.gather(accelerator)
        values, kinds = self.sums.tolist(), zip(KINDS, *self.kinds.tolist(), strict=True)
        loss, passes, sums, counts = values[0], values[1], values[2 : 2 + BINS], values[2 + BINS :]
        result = {
            "loss": loss / passes if passes else None,
            "grad_norm": sum(self.norms) / len(self.norms) if self.norms else None,
            "loss_by_gamma": {f"{k / 10:.1f}": sums[k] / counts[k] for k in range(BINS) if counts[k]},
            "loss_by_mode": {kind: total / count for kind, total, count in kinds if count},
        }
        self.sums.zero_()
        self.kinds.zero_()
        self.norms.clear()
        return result

    def state(self) -> dict[str, list]:
        """What `load` continues from."""
        return {"sums": self.sums.tolist(), "norms": list(self.norms), "kinds": self.kinds.tolist()}

    def load(self, state: Mapping[str, list], main_process: bool) -> None:
        """Continue; the sums are the main process's. A checkpoint from before kinds were counted starts them at 0."""
        self.norms = list(state["norms"])
        if main_process:
            self.sums.copy_(torch.tensor(state["sums"], dtype=self.sums.dtype))
            if "kinds" in state:
                self.kinds.copy_(torch.tensor(state["kinds"], dtype=self.kinds.dtype))


class Stopwatch:
    """Seconds spent inside its `with` blocks, over all starts of the run."""

    def __init__(self) -> None:
        self.total = 0.0
        self.lap = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
        spent = time.perf_counter() - self._began
        self.total += spent
        self.lap += spent

    def take_lap(self) -> float:
        """Seconds since the last call."""
        lap, self.lap = self.lap, 0.0
        return lap


class RunLog:
    """`metrics.jsonl` and the trackers; only the main process writes."""

    def __init__(self, folder: str | Path, accelerator: Accelerator, trackers: tuple[str, ...] = ()) -> None:
        self.file = Path(folder) / "metrics.jsonl"
        self.accelerator = accelerator
        self.trackers = trackers

    def truncate(self, step: int) -> None:
        """Forget the lines after `step`, which a resumed run writes again, and a line cut short by a crash."""
        if not self.accelerator.is_main_process or not self.file.is_file():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the line that was being written
                break
        partial = self.file.with_suffix(".tmp")
        try:
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, self.file)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of numbers for one step."""
        if self.accelerator.is_main_process:
            try:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **_finite(metrics)}) + "\n")
            except OSError as error:
                raise self._unwritable(error) from error
        if self.trackers:
            scalars = {key: value for key, value in _scalars(metrics) if value is not None}
            self.accelerator.log(scalars, step=step)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.file} ({error.strerror}): mend that, then add --resume to continue")

    def video(self, name: str, path: Path, step: int) -> None:
        """Show a GIF or PNG file in the trackers (TensorBoard takes its bytes; it would need moviepy to make them)."""
        if "wandb" in self.trackers and self.accelerator.is_main_process:
            import wandb

            media = wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
            self.accelerator.get_tracker("wandb", unwrap=True).log({name: media}, step=step)
        if "tensorboard" in self.trackers and self.accelerator.is_main_process:
            _to_tensorboard(self.accelerator.get_tracker("tensorboard", unwrap=True), name, path, step)


def start_trackers(
    accelerator: Accelerator,
    folder: Path,
    trackers: tuple[str, ...],
    config: Mapping[str, Any],
    project: str | None = None,
    name: str | None = None,
) -> None:
    """Open the trackers that the accelerator was made with; a resumed run continues its wandb run."""
    id_file = folder / "wandb_id"
    options: dict[str, Any] = {"name": name or folder.name, "dir": str(folder), "resume": "allow"}
    options["run_name"] = project or os.environ.get("WANDB_PROJECT") or "eqm-video"  # Accelerate's word for the project
    if os.environ.get("WANDB_ENTITY"):
        options["entity"] = os.environ["WANDB_ENTITY"]
    if "wandb" in trackers and accelerator.is_main_process:
        if not id_file.is_file():
            id_file.write_text(os.urandom(4).hex())
        options["id"] = id_file.read_text().strip()
    flat = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in config.items()}
    # The project of the environment is wandb's alone: Accelerate would name TensorBoard's folder with it too.
    accelerator.log_with = [WandBTracker(**options) if str(one) == "wandb" else one for one in accelerator.log_with]
    accelerator.init_trackers(project or "eqm-video", config=flat)


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Honour the reference's WANDB_KEY, ENTITY and PROJECT; UserError where a tracker cannot work."""
    for theirs, name in (("WANDB_KEY", "WANDB_API_KEY"), ("ENTITY", "WANDB_ENTITY"), ("PROJECT", "WANDB_PROJECT")):
        if theirs in os.environ:
            os.environ.setdefault(name, os.environ[theirs])
    if "wandb" in trackers and os.environ.get("WANDB_MODE", "online") == "online" and not _logged_in_to_wandb():
        raise UserError(
            "track.to asks for wandb, but nobody is logged in: type `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to record on this machine"
        )
    if "tensorboard" in trackers and importlib.util.find_spec("tensorboard") is None:
        raise UserError("track.to asks for tensorboard, which is not installed: pip install tensorboard")


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    return server in hosts


def _to_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    from PIL import Image
    from torch.utils.tensorboard.summary import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _scalars(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """{"held_out": {"0.1": 2}} -> ("held_out/0.1", 2): trackers take flat names."""
    flat = []
    for key, value in metrics.items():
        flat += _scalars(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
