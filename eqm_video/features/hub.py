"""Features of networks from the hub: DINOv2, VideoMAE and V-JEPA 2, through transformers.

Weights are read from safetensors files only, and no code that comes with a model is run. Pictures are prepared here:
the processors of transformers want torchvision.

Legend: B clips, T frames, N tokens of a clip or frame, D width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.errors import UserError, cut
from eqm_video.features.feature import Feature, Input, pool_frames
from eqm_video.system.hashing import add_weights

CLASSES = {"dinov2": "Dinov2Model", "videomae": "VideoMAEModel", "vjepa2": "VJEPA2Model"}


class Hub(Feature):
    """DINOv2, VideoMAE or V-JEPA 2: --features hub:OWNER/NAME or hub:FOLDER, through transformers.

    DINOv2 sees frames alone: the class tokens' mean and mean change. VideoMAE and V-JEPA 2 see the clip: the mean of
    all tokens. Clips are cropped about the centre to the network's size; frames are taken evenly where it wants fewer,
    and the last one is repeated where it wants more.
    """

    name = "hub"

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        try:
            import transformers
        except ImportError as error:
            raise UserError(f"--features hub:{source} needs transformers; type pip install transformers") from error
        config = _loaded(transformers.AutoConfig, source)
        if config.model_type not in CLASSES:
            raise UserError(
                f"--features hub:{source} is a {config.model_type}; the networks that are known are "
                f"{', '.join(CLASSES)}: export another one as TorchScript or ONNX, and type --features FILE"
            )
        network = _loaded(getattr(transformers, CLASSES[config.model_type]), source, use_safetensors=True)
        self.network = network.to(device).eval()
        self.kind, self.source, self.name = config.model_type, source, f"hub:{Path(source).name}"  # type: ignore[misc]
        self.digest = _digest(self.network)
        size = getattr(config, "crop_size", None) or config.image_size
        side = int(size if isinstance(size, int) else size[0])
        self.frames = int(getattr(config, "num_frames", 0) or getattr(config, "frames_per_clip", 0))
        layout = "bchw" if self.kind == "dinov2" else "btchw"
        self.input = Input(layout, (side, side), "imagenet", fit="crop")

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, D); of DINOv2 (B, 2D) where there are several frames."""
        if self.kind == "dinov2":
            tokens = self.network(self.input.prepare(clips)).last_hidden_state[:, 0]
            return {"features": pool_frames(tokens.unflatten(0, clips.shape[:2]).float())}
        count = clips.shape[1]
        places = torch.arange(self.frames)
        places = places * count // self.frames if count > self.frames else places.clamp(max=count - 1)
        values = self.input.prepare(clips[:, places.to(clips.device)])
        if self.kind == "videomae":
            return {"features": self.network(values).last_hidden_state.mean(1).float()}
        return {"features": self.network.get_vision_features(values).mean(1).float()}

    def record(self) -> dict[str, Any]:
        """The kind of the network, the hash of its weights, and its input; where they lie changes no number."""
        return {
            "name": "hub",
            "weights": self.digest,
            "kind": self.kind,
            "frames": self.frames,
            "input": vars(self.input),
        }


def _loaded(kind: Any, source: str, **options: Any) -> Any:
    """`kind.from_pretrained(source)`; UserError where the hub or the folder has no such thing."""
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = cut(str(error).strip().partition("\n")[0], 160)
        raise UserError(
            f"--features hub:{source} cannot be loaded ({reason}); give OWNER/NAME of the hub, or a folder with "
            "config.json and model.safetensors"
        ) from error


def _digest(network: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights: the same for a copy of the files elsewhere."""
    return add_weights(hashlib.sha256(), network.state_dict()).hexdigest()
