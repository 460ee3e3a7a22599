"""The exponential moving average of a network's weights. Previews, held-out losses and exports use it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eqm_video.training.sharding import own, part_of, whole


class Ema:
    """A float32 twin of a network whose weights follow the trained ones.

    `average` maps every parameter's name to its float32 average. These are the twin's own parameters, so that
    evaluating the average needs no copy. After n updates the decay is min(decay, (1 + n) / (10 + n)). Without this
    warm-up a run shorter than 1 / (1 - decay) steps would average mostly its random initialization.

    After `shard` this process has its parts of the averages alone, and the twin has weights only inside `whole`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        self.average: dict[str, Tensor] = dict(self.network.named_parameters())
        self.decay = decay
        self.updates = 0
        self.sharded = False

    def shard(self, network: nn.Module) -> None:
        """Keep the parts of the averages that this process holds of the weights of `network`."""
        trained = dict(network.named_parameters())
        self.average = {name: part_of(tensor.detach(), trained[name]) for name, tensor in self.average.items()}
        self.sharded = True
        self._fill({name: tensor.to("meta") for name, tensor in self.network.named_parameters()})

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """A block in which the twin has all its weights, and can be evaluated and saved. All processes enter it."""
        if not self.sharded:
            yield self.network
            return
        empty = dict(self.network.named_parameters())
        self._fill({name: whole(tensor) for name, tensor in self.average.items()})
        try:
            yield self.network
        finally:
            self._fill(empty)

    def _fill(self, weights: dict[str, Tensor]) -> None:
        """Make these tensors the weights of the twin."""
        self.network.load_state_dict(weights, strict=False, assign=True)

    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, network: nn.Module, refused: Tensor | None = None) -> None:
        """Move the average towards the network's weights; call it once after each optimizer step.

        refused: (), 1 to leave the average as it is, else 0; None for 0. It is not read from a GPU, so `updates` is
        one higher in any case.
        """
        trained = dict(network.named_parameters())
        if trained.keys() != self.average.keys():
            raise ValueError(f"the parameters' names changed: {sorted(trained.keys() ^ self.average.keys())[:3]} ...")
        current = [own(trained[name].detach()).float() for name in self.average]
        average, weight = [own(tensor) for tensor in self.average.values()], 1 - self.current_decay()
        self.updates += 1
        if refused is None or refused.device.type == "cpu":
            if refused is None or not refused:
                torch._foreach_lerp_(average, current, weight)
            return
        steps = torch._foreach_sub(current, average)
        torch._foreach_mul_(steps, weight * (1 - refused))
        torch._foreach_add_(average, steps)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from a saved average, exactly; `weights` may hold buffers too, which are ignored.

        ValueError for missing parameters.
        """
        missing = self.average.keys() - weights.keys()
        if missing:
            raise ValueError(f"the saved average lacks {len(missing)} parameters, {sorted(missing)[0]} among them")
        for name, tensor in self.average.items():
            tensor.copy_(part_of(weights[name], tensor))
        self.updates = updates
