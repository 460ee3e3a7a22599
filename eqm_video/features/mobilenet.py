"""The feature `mobilenet`: a network of single pictures, read from an archive of the npm registry.

Legend: B clips, T frames.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eqm_video.errors import UserError, cut
from eqm_video.features.feature import Feature, Input, hash_file, pool_frames
from eqm_video.system.hashing import add_file

INSIDE = "package/dist/models/mobilenet_v2/"
MODEL, NUMBERS = f"{INSIDE}model.min.js", f"{INSIDE}group1-shard1of1.min.js"
MOST = 16_000_000  # bytes of a file in the archive; the real ones have 0.1 and 3.5 million
# The archive's SHA-512 as the registry states it: `npm view nsfwjs@4.3.0 dist.integrity`.
STATED = "WTKDte0vp1X97N1h34P79G/hG+sVT3+TnDz9di1WseIJR93v11E4viNX7Vg9WsO6HYoR772Nzq2iM8jo3XBZ+g=="
FETCH = "fetch it with npm pack nsfwjs@4.3.0 and give --weights nsfwjs-4.3.0.tgz"
BLOCKS = 10  # of 16; the later ones were trained on the classes of that package
AT_ONCE = 8  # frames: the maps of many more leave the processor's caches, at several times the time for a frame
ENTRY = re.compile(
    r'\{name:"([\w/]+)",shape:\[([\d,]+)\],dtype:"float32",quantization:\{min:([-\d.e]+),scale:([-\d.e]+),dtype:"uint8"\}\}'
)
BASE64 = re.compile(r'"([A-Za-z0-9+/]{64,}={0,2})"')
NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class MobileNet(Feature):
    """MobileNetV2, a network of single pictures: --weights nsfwjs-4.3.0.tgz, which `npm pack nsfwjs@4.3.0` fetches.

    Sandler et al. (2018), arXiv 1801.04381. The package nsfwjs (MIT) holds a classifier that was trained on top of this
    network; the layers up to block 10 stayed as they were (the file marks them so), and only these are used. The
    features of a frame are the 96 channels of block 10, averaged over 14x14 places; frames of 224x224 pixels in [0, 1],
    as that package gives them; weights of 8 bits. No JavaScript runs: the numbers are read out of the archive's text.
    """

    name = "mobilenet"
    input = Input("bchw", (224, 224), "0:1")

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.source, self.digest = str(path), hash_file(path)
        stated = add_file(hashlib.sha512(), path).digest() == base64.b64decode(STATED)
        self.verified = "the npm registry's checksum of nsfwjs 4.3.0" if stated else ""
        self.network = build(read_weights(path), path).to(device)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, 192), (B, 96) of single frames."""
        parts = self.input.prepare(clips).split(AT_ONCE)
        channels = torch.cat([self.network(part).mean((2, 3)) for part in parts])
        return {"features": pool_frames(channels.unflatten(0, clips.shape[:2]))}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the archive by their names, float32; UserError for another file.

    A tensor of uint8 values q with `min` and `scale` stands for min + scale · q.
    """
    try:
        with tarfile.open(path) as archive:
            texts = [_text(archive, name) for name in (MODEL, NUMBERS)]
        numbers = base64.b64decode(max(BASE64.findall(texts[1]), key=len, default=""))
    except (tarfile.TarError, zlib.error, binascii.Error, KeyError, OSError, EOFError) as error:
        reason = cut(str(error).partition("\n")[0].rstrip(":"), 120)  # tarfile adds a line for each compression
        raise UserError(f"{path} is not the archive of nsfwjs 4.3.0 ({reason}); {FETCH}") from error
    weights, start = {}, 0
    for name, sides, least, scale in ENTRY.findall(texts[0]):
        shape = tuple(map(int, sides.split(",")))
        values = np.frombuffer(numbers[start : start + math.prod(shape)], np.uint8)
        start += math.prod(shape)
        if values.size == math.prod(shape):
            weights[name] = torch.from_numpy((float(least) + float(scale) * values).astype(np.float32)).view(shape)
    return weights


def build(weights: dict[str, Tensor], source: Path) -> nn.Sequential:
    """The network up to block 10, frames (N, 3, 224, 224) to (N, 96, 14, 14); UserError where weights are missing."""
    try:
        from transformers import MobileNetV2Config, MobileNetV2Model
    except ImportError as error:
        raise UserError("--features mobilenet needs transformers; type pip install transformers") from error
    with torch.random.fork_rng(devices=[]):
        settings = MobileNetV2Config(tf_padding=True, layer_norm_eps=1e-3)
        whole = MobileNetV2Model(settings, add_pooling_layer=False)
    first, blocks = whole.conv_stem, whole.layer[:BLOCKS]
    layers = {
        first.first_conv: ("Conv1/kernel", "bn_Conv1"),
        first.conv_3x3: ("expanded_conv_depthwise/depthwise_kernel", "expanded_conv_depthwise_BN"),
        first.reduce_1x1: ("expanded_conv_project/kernel", "expanded_conv_project_BN"),
    }
    for number, block in enumerate(blocks, 1):
        layers[block.expand_1x1] = (f"block_{number}_expand/kernel", f"block_{number}_expand_BN")
        layers[block.conv_3x3] = (f"block_{number}_depthwise/depthwise_kernel", f"block_{number}_depthwise_BN")
        layers[block.reduce_1x1] = (f"block_{number}_project/kernel", f"block_{number}_project_BN")
    for layer, (kernel, norm) in layers.items():
        names = {f"normalization.{own}": f"{norm}/{part}" for own, part in NORMS.items()}
        # Kernels are (h, w, in, out), of a depthwise layer (h, w, channels, 1).
        axes = (2, 3, 0, 1) if kernel.endswith("depthwise_kernel") else (3, 2, 0, 1)
        places = layer.state_dict()  # tensors that share the layer's memory
        for place, name in {"convolution.weight": kernel, **names}.items():
            value = weights.get(name, torch.empty(0))
            value = value.permute(axes) if value.ndim == len(axes) else value
            if value.shape != places[place].shape:
                raise UserError(f"{source} has no weights {name} of MobileNetV2's size; {FETCH}")
            places[place].copy_(value)
    return nn.Sequential(first, *blocks).eval().requires_grad_(False)


def _text(archive: tarfile.TarFile, name: str) -> str:
    """A file of the archive as text; KeyError where it is none, or too large to be the real one."""
    member = archive.getmember(name)
    file = archive.extractfile(member) if member.size <= MOST else None
    if file is None:
        raise KeyError(f"{name} is no file of its size")
    return file.read().decode("ascii", errors="replace")
