"""The loss on held-out clips, at fixed gammas with fixed noise. It rises where a network memorises its training clips.

Legend: B clips, T frames, C channels, H W height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eqm_video.core.energy import Field
from eqm_video.core.objective import EqMObjective, interpolate
from eqm_video.data.layout import find_lists
from eqm_video.data.presence import patient
from eqm_video.data.scan import Substitutes
from eqm_video.data.video import VideoDecodeError
from eqm_video.randomness import fold, generator, normal
from eqm_video.system import waits
from eqm_video.training.signals import Stopped


def note_unheld(data: Any) -> str:
    """A note for a run that holds nothing out of its set: how to, as far as that is possible with these files."""
    note = "note: nothing is held out, so there will be no loss on held-out clips; "
    if len(data) == len({label for _, label, _ in data.files}):  # every class keeps a file to train on
        why = "a single file" if len(data) == 1 else "classes of a single file"
        return f"{note}nothing can be taken from {why}, but held_out.root=FOLDER names other files"
    note += f"held_out.fraction=0.1 holds out {'a tenth' if len(data) >= 20 else 'one or more'} of the files"
    test = ", held_out.split=test takes the test list" if find_lists(Path(data.root)) is not None else ""
    return f"{note}, held_out.root=FOLDER names others{test}"


@dataclass(eq=False)
class HeldOut:
    """A hook for the trainer. It returns `{"held_out": {"0.1": loss, ..., "mean": loss}}` for a network.

    `clips` windows are spread evenly over the set, always the same. They are encoded once (the posterior's mean) and
    kept in CPU memory; every process takes its share. Clip k gets the same noise at every evaluation, on any number of
    processes. A file that does not decode is replaced by another, always the same, with a warning. `pulse()` is called
    before each clip; if it raises Stopped, there are no losses this time.
    """

    dataset: Any
    collate: Callable[[list[Any]], dict[str, Any]]
    encode: Callable[[dict[str, Any], None], Tensor]
    objective: EqMObjective
    _: KW_ONLY
    clips: int
    gammas: Sequence[float]
    seed: int
    reference_fps: float
    accelerator: Accelerator
    pulse: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        count = min(self.clips, len(self.dataset))
        self.indices = [k * len(self.dataset) // count for k in range(count)]
        self.mine = list(range(self.accelerator.process_index, count, self.accelerator.num_processes))
        self.substitutes = patient(self.dataset) or Substitutes(len(self.dataset))
        self._clips: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, step: int, network: nn.Module) -> dict[str, Any]:
        """Mean loss at every gamma; {} if a signal stopped the evaluation. `step` is not used."""
        sums, stopped = torch.zeros(len(self.gammas), device=self.accelerator.device), 0.0
        try:
            for k in waits.bar(self.mine, "held-out loss", unit="clip"):
                self.pulse()
                sums += self._losses(self._clip(k, network.null_label), k, network)
        except Stopped:
            stopped = 1.0
        if self.accelerator.num_processes > 1:  # the others wait here: this process must come even if it was stopped
            both = self.accelerator.reduce(torch.cat([sums, sums.new_tensor([stopped])]), reduction="sum")
            sums, stopped = both[:-1], float(both[-1])
        if stopped:
            return {}
        losses = (sums / len(self.indices)).tolist()
        named = {f"{gamma:g}": loss for gamma, loss in zip(self.gammas, losses, strict=True)}
        return {"held_out": {**named, "mean": sum(losses) / len(losses)}}

    def _losses(self, clip: dict[str, Tensor], k: int, network: nn.Module) -> Tensor:
        """The loss of clip k at every gamma (gammas,), computed as a single batch."""
        device, count = self.accelerator.device, len(self.gammas)
        clean = clip["clean"].to(device).expand(count, -1, -1, -1, -1)
        # Generators on the CPU: the noise must not depend on the device of a run.
        generators = [generator(self.seed, "held out", k, f"{gamma:g}") for gamma in self.gammas]
        noise = normal(tuple(clean.shape[1:]), generators, device=device)
        gammas = torch.tensor(self.gammas, device=device)[:, None].expand(count, clean.shape[1])
        labels, times = clip["labels"].to(device).expand(count), clip["times"].to(device).expand(count, -1)
        with self.accelerator.autocast():
            output = Field(network)(interpolate(clean, noise, gammas), labels, times=times, gamma=gammas)
        return self.objective.loss(output.sample, clean, noise, gammas).mean(dim=1)

    def _clip(self, k: int, null_label: int) -> dict[str, Tensor]:
        if k not in self._clips:
            seed = fold(self.seed, "held out", k)
            batch, clean = self.substitutes.take(self.indices[k], seed, self._encoded)
            labels = batch["labels"]
            self._clips[k] = {
                "clean": clean,
                "labels": torch.where(labels < 0, null_label, labels),
                "times": batch["times"] * self.reference_fps,
            }
        return self._clips[k]

    def _encoded(self, index: int) -> tuple[dict[str, Any], Tensor]:
        """The clip of a file as a batch, and its latents; VideoDecodeError if these are not finite."""
        batch = self.collate([self.dataset.clip(index, None)])
        clean = self.encode(batch, None).cpu()
        if not torch.isfinite(clean).all():
            raise VideoDecodeError(f"{batch['names'][0]}: its latents are not finite")
        return batch, clean
