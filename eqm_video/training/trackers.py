"""The experiment trackers wandb and TensorBoard: opening them, and their needs beyond Accelerate."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import WandBTracker

from eqm_video.errors import UserError


def start_trackers(
    accelerator: Accelerator,
    folder: Path,
    trackers: tuple[str, ...],
    config: Mapping[str, Any],
    project: str | None = None,
    name: str | None = None,
    step: int = 0,
) -> None:
    """Open the trackers of the accelerator, for the steps after `step`.

    A resumed run continues its wandb run, which keeps the first value of a step, and hides the values that TensorBoard
    has for repeated steps. A run from step 0 begins another wandb run.
    """
    id_file = folder / "wandb_id"
    if "wandb" in trackers and step == 0 and accelerator.is_main_process:
        id_file.unlink(missing_ok=True)
    options: dict[str, Any] = {"name": name or folder.name, "dir": str(folder), "resume": "allow"}
    options["run_name"] = project or os.environ.get("WANDB_PROJECT") or "eqm-video"  # Accelerate's word for the project
    if os.environ.get("WANDB_ENTITY"):
        options["entity"] = os.environ["WANDB_ENTITY"]
    if "wandb" in trackers and accelerator.is_main_process:
        if not id_file.is_file():
            id_file.write_text(os.urandom(4).hex())
        options["id"] = id_file.read_text().strip()
    flat = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in config.items()}
    # WANDB_PROJECT is for wandb alone: Accelerate would name TensorBoard's folder with it too.
    accelerator.log_with = [WandBTracker(**options) if str(kind) == "wandb" else kind for kind in accelerator.log_with]
    # purge_step hides events of this and later steps that the folder already has.
    options = {"tensorboard": {"purge_step": step + 1}}
    accelerator.init_trackers(project or "eqm-video", config=flat, init_kwargs=options)


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Accept the reference code's variables WANDB_KEY, ENTITY and PROJECT; UserError if a tracker cannot work."""
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


def tracker_errors(trackers: tuple[str, ...]) -> tuple[type[Exception], ...]:
    """The exception types of the trackers' own clients."""
    if "wandb" not in trackers:
        return ()
    import wandb

    return (wandb.errors.Error,)


def to_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    """Write a GIF or PNG file as a picture of TensorBoard, from its bytes."""
    from PIL import Image
    from torch.utils.tensorboard.summary import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


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
