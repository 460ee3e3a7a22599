"""Features of a TorchScript or ONNX file on this machine, with a stated input.

The files are programs of tensor operations: neither format runs Python when it is loaded.

Legend: B clips, T frames, D dimensions of a feature.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from eqm_video.errors import UserError, cut
from eqm_video.features.feature import Feature, Input, hash_file, pool_frames

SCRIPTS = (".pt", ".pth", ".ts", ".torchscript", ".jit")
OUTPUTS = ("features", "logits", "spatial")


class File(Feature):
    """Any TorchScript or ONNX file: --features FILE, with --input-layout, --input-size and --input-range.

    A script returns a tensor, or a dictionary or tuple of features, logits and spatial in this order. Outputs of an
    ONNX file are known by these names; the first one is the features where none has them.
    """

    outputs = None

    def __init__(self, path: Path, taken: Input, device: torch.device | str = "cpu", name: str = "") -> None:
        if not path.is_file():
            raise UserError(f"--features {path}: there is no such file; give a TorchScript (.pt) or ONNX (.onnx) file")
        self.name, self.input = name or path.name, taken  # type: ignore[misc]  # a file's own name
        self.source, self.digest = str(path), hash_file(path)
        self.network = open_onnx(path, device) if path.suffix == ".onnx" else open_script(path, device)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """The outputs that the file has."""
        outputs = named(self.network(self.input.prepare(clips)), self.source)
        if self.input.by_frame:
            outputs = {name: value.unflatten(0, clips.shape[:2]) for name, value in outputs.items()}
            pooled = {name: value.mean(1) for name, value in outputs.items()}
            outputs = {**pooled, "features": pool_frames(outputs["features"])}
        return outputs

    def record(self) -> dict[str, object]:
        """The hash of the file, and the input; its name changes no number."""
        return {"name": "file", "weights": self.digest, "input": vars(self.input)}


def open_script(path: Path, device: torch.device | str) -> torch.jit.ScriptModule:
    """A TorchScript file on a device; UserError for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the format is what the published files have
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = cut(str(error).strip().partition("\n")[0], 120)
        raise UserError(
            f"{path} is no TorchScript file ({reason}); export the network with torch.jit.script or torch.jit.trace"
        ) from error


def open_onnx(path: Path, device: torch.device | str) -> Callable[[Tensor], dict[str, Tensor]]:
    """An ONNX file as a function of one tensor; UserError without onnxruntime, and for what is no such file."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise UserError(f"--features {path} needs onnxruntime; type pip install onnxruntime") from error
    failures = (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.NoModel, state.InvalidArgument)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    available = onnxruntime.get_available_providers()
    providers = [
        name for name in ("CUDAExecutionProvider",) if torch.device(device).type == "cuda" and name in available
    ]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except failures as error:
        raise UserError(f"{path} cannot be opened as ONNX ({cut(str(error).strip(), 120)})") from error
    taken, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    known = names if set(names) & set(OUTPUTS) else ["features", *names[1:]]

    def run(values: Tensor) -> dict[str, Tensor]:
        rows = session.run(None, {taken: values.cpu().contiguous().numpy()})
        return {name: torch.from_numpy(row) for name, row in zip(known, rows, strict=True) if name in OUTPUTS}

    return run


def named(outputs: Tensor | Mapping[str, Tensor] | tuple[Tensor, ...], source: str) -> dict[str, Tensor]:
    """A network's outputs by name, each (B, ·) float32; UserError where there are no features among them."""
    if isinstance(outputs, Tensor):
        outputs = {"features": outputs}
    elif isinstance(outputs, tuple | list):
        outputs = dict(zip(OUTPUTS, outputs, strict=False))
    kept = {name: outputs[name].flatten(1).float() for name in OUTPUTS if name in outputs}
    if "features" not in kept:
        raise UserError(f"{source} returns {', '.join(outputs)}, and features must be among its outputs")
    return kept
