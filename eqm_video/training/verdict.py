"""The verdict on a step: whether its numbers are finite. The device gives it, and the host reads it a step later.

So the host never waits for the step at hand, and queues the next one while the device computes. The device itself
leaves a step out whose numbers are not finite: until the verdict is read, weights and average are those of the step
before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqm_video.system.devices import Fetch

MAX_SKIPPED = 50  # fp16: consecutive skipped steps after which the run gives up


class Verdict:
    """The verdict on a step, on its way to the host.

    norm: (), of the gradient before clipping. flags: (4,), sums over all processes of stop signals, of requests for a
    checkpoint by the clock, of gradients that are not finite, and of batches with latents that are not finite. running:
    (2,), the sum of this process's losses since the last line of the log, and their number. spoiled: (clips,), True for
    each clip of this process whose latents are not finite. `refused` is () float32 on the device, 1 for a step to be
    left out, else 0. `before` is the end of the update before, as an event of the device's stream, or None.
    """

    def __init__(
        self,
        step: int,
        names: Sequence[str],
        norm: Tensor,
        flags: Tensor,
        running: Tensor,
        spoiled: Tensor,
        before: torch.cuda.Event | None = None,
    ) -> None:
        self.step, self.names, self.before = step, list(names), before
        self.refused = (flags[2:].sum() > 0).float()
        self._numbers = Fetch(torch.cat([norm[None], flags, running, spoiled.to(norm.device).float()]))
        self.norm, self.loss = 0.0, None
        self.stop = self.clock = self.infinite = self.spoiled = False

    def arrives(self, seconds: float) -> bool:
        """Whether the device gives the verdict within that time."""
        return self._numbers.arrives(seconds)

    def read(self) -> None:
        """Wait for the verdict, and set `norm`, `loss`, `stop`, `clock`, `infinite` and `spoiled`.

        loss: the running mean, None without any. infinite: the gradient is; spoiled: latents are.
        """
        self.norm, *flags, loss, passes = self._numbers.read()[:7]
        self.stop, self.clock, self.infinite, self.spoiled = (flag > 0 for flag in flags)
        self.loss = loss / passes if passes else None

    def fault(self, *, scaled: bool, skipped: int) -> str | None:
        """The sentence with which the run ends; None if it goes on.

        scaled: the run is in fp16, which skips steps that overflow and lowers its scale. skipped: how many it has
        skipped in a row.
        """
        if self.spoiled:
            clips = [name for name, faulty in zip(self.names, self._numbers.read()[7:], strict=False) if faulty]
            named = ", ".join(clips) or "clips without names, or of another process"
            return (
                f"the latents of these clips of step {self.step} are not finite, so it was left out: {named}. Use a "
                "codec and a data set without such values: try `eqm-video reconstruct` on these files"
            )
        if not self.infinite or (scaled and skipped <= MAX_SKIPPED):
            return None
        clips = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        return (
            f"the gradient of step {self.step} is not finite (norm {self.norm}), so the weights were left as they "
            "were. Use a lower train.lr or a longer train.warmup, train.mixed_precision=bf16 instead of fp16, and look "
            f"at the clips of this step: {clips or 'they have no names'}"
        )
