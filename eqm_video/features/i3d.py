"""The feature `i3d`: the logits that FVD is defined on, from a file on this machine.

Legend: B clips, T frames.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from eqm_video.errors import UserError, short
from eqm_video.features.feature import Feature, Input, hash_file
from eqm_video.features.file import named, open_script
from eqm_video.features.i3d_network import LABELS, I3DNetwork
from eqm_video.models.reference_files import read_weights

COUNT = ".num_batches_tracked"


class I3D(Feature):
    """I3D's 400 logits of Kinetics-400, before the softmax: --weights FILE, TorchScript or a state dict.

    `i3d_torchscript.pt` is called as StyleGAN-V calls it: return_features=True, on clips of 224x224 pixels in [-1, 1].
    The resize is this package's, as the protocol says (the file's own is bilinear without antialiasing).
    `i3d_pretrained_400.pt`, of VideoGPT, PVDM and cd-fvd, is a state dict: it is loaded, strictly, into this package's
    I3D with their eps of 1e-5, and its logits are averaged over time, as they do. The file `rgb_imagenet.pt` has the
    same names and belongs to an eps of 1e-3, so its logits come out otherwise than its authors'. No source that could
    be cited gives the files' hashes, so the hash is recorded and printed as unverified.
    """

    name = "i3d"
    least_frames = 10
    outputs = ("features", "logits")

    def __init__(self, path: Path, taken: Input, device: torch.device | str = "cpu") -> None:
        self.input, self.source, self.digest = taken, str(path), hash_file(path)
        self.network = open_script(path, device) if is_script(path) else open_state(path, device)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features and logits, both (B, 400)."""
        values, keywords = self.input.prepare(clips), {}
        if isinstance(self.network, torch.jit.ScriptModule):
            known = {argument.name for argument in self.network.forward.schema.arguments}
            wanted = {"rescale": False, "resize": False, "return_features": True}
            keywords = {key: wanted[key] for key in wanted if key in known}
        logits = named(self.network(values, **keywords), self.source)
        return {"features": logits["features"], "logits": logits["features"]}


def is_script(path: Path) -> bool:
    """Whether a file of torch holds a program beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def open_state(path: Path, device: torch.device | str) -> nn.Module:
    """I3D with the weights of a state dict; UserError for a file of others. No code of the file runs."""
    with torch.device("meta"):  # no memory, no initial weights
        network = I3DNetwork()
    weights, own = read_weights(path), network.state_dict()
    # Batch normalisation counts its batches in newer files alone, and its averages do not depend on the count.
    wanted = {name: tuple(value.shape) for name, value in own.items() if not name.endswith(COUNT)}
    present = {name: tuple(value.shape) for name, value in weights.items() if not name.endswith(COUNT)}
    other = sorted(name for name in {*wanted, *present} if wanted.get(name) != present.get(name))
    if other:
        raise UserError(
            f"{path} is no state dict of I3D with {LABELS} labels: {short(other[0])} is "
            f"{present.get(other[0], 'missing')} there and {wanted.get(other[0], 'unknown')} here; give "
            "i3d_pretrained_400.pt or i3d_torchscript.pt"
        )
    whole = {name: weights[name].float() if name in wanted else torch.zeros(()) for name in own}
    network.load_state_dict(whole, assign=True)
    return network.eval().requires_grad_(False).to(device)
