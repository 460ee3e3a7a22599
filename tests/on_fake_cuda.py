"""Run by test_device.py in a process of its own, in which CPU numbers stand on a device that is called cuda:0.

Every case is run there, and some again on a device that refuses float64, as those of Apple do. The output is JSON: for
each case of both the waits of the host for the device, or the error.
"""

# The fake device must be there before torch.

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakecuda
import torch

from eqm_video.analysis import curvature
from eqm_video.analysis import exact_field as oracle
from eqm_video.analysis import gamma_estimate as readout
from eqm_video.codec import Codec
from eqm_video.core.decay import ConstantDecay, TruncatedDecay
from eqm_video.metrics import frechet, nearest, ood
from eqm_video.models.transformer import EqMTransformer
from eqm_video.randomness import generator
from eqm_video.samplers import RULES, SAMPLERS, Dopri5
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.system import devices

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu

DEVICE = torch.device("cuda", 0)
FREE = ("H2D non_blocking", "H2D index from cpu")
STEPS = (1, 3)  # fewer than the updates between two looks for values that are not finite
SOLVERS = tuple(name for name in SAMPLERS if name not in RULES)
found: dict[str, Any] = {}


def case(name: str, work: Callable[[], Any]) -> Any:
    """Run a case on the device, and keep its waits, or its error."""
    with fakecuda.cuda():
        try:
            result = work()
            found[name] = sum(count for kind, count in fakecuda.LOG.items() if kind not in FREE)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            found[name], result = f"{type(error).__name__}: {str(error)[:300]}", None
    return result


def refuse_float64() -> None:
    """Make the device one without float64."""
    new = fakecuda.Dev.__new__

    def checked(cls: type, inner: torch.Tensor) -> Any:
        if inner.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return new(cls, inner)

    fakecuda.Dev.__new__ = staticmethod(checked)
    devices.WITHOUT_FLOAT64.add("cuda")


def tiny_pipeline() -> EqMPipeline:
    codec = Codec.load("bundled")
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 1, "num_labels": 2}
    network = EqMTransformer(in_channels=codec.latent_channels, **sizes)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    with fakecuda.cuda():
        network.to(DEVICE), codec.to(DEVICE)
    decay = {"kind": "truncated", "a": 0.8, "gain": 4.0}
    size = codec.downsampling * 2
    pipe = EqMPipeline(network, codec.vae, ["a", "b"], decay, {"kind": "nag", "steps": 3}, frames=3, size=size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampling(pipe: EqMPipeline, steps_of: tuple[int, ...], only: tuple[str, ...] = ()) -> None:
    """Every sampler, with and without known frames, guidance and turns, at each number of steps."""
    clips = torch.randint(0, 256, (2, 3, pipe.config.size, pipe.config.size, 3), dtype=torch.uint8).numpy()
    held = {"clips": clips, "known": [0]}
    coarse = {"dopri5": Dopri5(0.5, 0.5)}
    ways: dict[str, dict[str, Any]] = {name: {"sampler": coarse.get(name, name)} for name in SAMPLERS}
    ways |= {f"{name}, known": {"sampler": coarse.get(name, name), **held} for name in ("nag", *SOLVERS)}
    guided = {"guidance_scale": 2.0, "guidance_interval": (0, 0.5), **held}
    ways["euler, guided in an interval, known"] = {"sampler": "euler", **guided}
    ways["heun, history, guided in an interval"] = {"history_guidance": 2.0, "sampler": "heun", **guided}
    ways["composition"] = {"composition": [("a", 0.5), ("b", 0.7)], "labels": None, "num_samples": 2}
    ways["pyramid"] = {"frame_schedule": "pyramid", **held}
    ways["langevin, autoregressive"] = {"frame_schedule": "autoregressive", "sampler": "langevin"}
    ways["tolerance"] = {"tolerance": 1e-6}
    ways["tolerance per frame, pyramid"] = {"tolerance": 0.3, "per_frame": True, "frame_schedule": "pyramid", **held}
    ways["partial"] = {"clips": clips, "start_gamma": 0.5}
    for name, way in ways.items():
        for steps in steps_of if not only or name in only else ():
            call = {"labels": ["a", "b"], "seeds": [1, 2], "output_type": "latent", "steps": steps, **way}
            case(f"{name}/{steps}", lambda call=call: pipe(**call))
    for kind in ("uint8", "pt"):
        case(f"output {kind}", lambda kind=kind: pipe("a", seeds=[1], output_type=kind, steps=1))
    case("rollout", lambda: list(roll_out(pipe, ["a"], length=5, overlap=1, seeds=[1], steps=1, output_type="latent")))


def measures(pipe: EqMPipeline) -> None:
    """Everything that wants float64, or keeps a state."""
    channels = pipe.transformer.config.in_channels
    generators = [generator("test", k) for k in range(2)]
    latents = case("latents", lambda: torch.randn(2, 3, channels, 2, 2).to(DEVICE))
    field, data = case("field", lambda: pipe.field(["a", "b"])), torch.randn(3, 3, channels, 2, 2)
    scale = case("calibrate", lambda: readout.calibrate(latents))

    def read() -> Any:
        with torch.no_grad():
            slope = field(latents)
        rms, dot = readout.frame_rms(slope), readout.frame_dot(latents, slope)
        return readout.infer_gamma(rms, pipe.decay, scale, dot=dot)

    def near() -> Any:
        pixels = (torch.rand(3, 2, 4, 4, 3) * 255).to(torch.uint8)
        state = nearest.NearestClips(pixels.to(DEVICE))
        state.update(pixels.flip(0), torch.arange(3))  # from the CPU
        state.update(pixels.to(DEVICE), torch.arange(3, 6).to(DEVICE))
        if state.indices.device != DEVICE or state.clips.device != DEVICE:
            raise RuntimeError("the state is not on the queries' device")
        return state.rms, state.second_rms, state.ratio

    def told() -> Any:
        exact = oracle.OracleField(data, ConstantDecay())
        return exact.at_gamma(torch.full((2, 3), 0.5).to(DEVICE))(latents), exact.posterior(latents)

    features = torch.randn(6, 4)
    case("curl", lambda: curvature.curl(field, latents, probes=2, generators=generators))
    case("curvature", lambda: curvature.largest_curvature(field, latents, iterations=3, generators=generators))
    case("readout", read)
    case("oracle", lambda: oracle.OracleField(data, TruncatedDecay(), frame_wise=True)(latents))
    case("oracle at gamma", told)
    case("nearest", near)
    case("frechet", lambda: frechet.frechet_distance(*frechet.gaussian_of(features.to(DEVICE)) * 2))
    case("scores", lambda: ood.frame_scores(field, latents, "implicit"))
    case("auroc", lambda: ood.auroc(torch.rand(4).to(DEVICE), torch.rand(5).to(DEVICE)))
    case("network", lambda: pipe.transformer(latents, torch.tensor([0, 1])).sample.sum())


def offloading() -> None:
    """A model whose parts go to the device one after the other, and come back."""
    pipe, call = tiny_pipeline(), {"labels": "a", "seeds": [1], "steps": 2, "output_type": "pt"}
    plain = case("all on the device", lambda: pipe(**call).frames)
    case("offload", lambda: pipe.enable_model_cpu_offload(device=DEVICE))
    again = case("offloaded", lambda: pipe(**call).frames)
    found["offloaded, the same"] = (
        plain is not None and again is not None and bool(torch.equal(plain.cpu(), again.cpu()))
    )
    found["offloaded, now on"] = sorted({str(next(part.parameters()).device) for part in (pipe.transformer, pipe.vae)})


def stages() -> None:
    """Stages of benchmarks/gpu.py. What is missing here is torch.compile, which refuses the fake, and memory."""
    options = argparse.Namespace(device="cuda", tiny=True, size=4, depth=1)
    shape = (2, 2, 4, 4, 4)
    for dtype in ("fp32", "bf16"):
        case(f"numbers in {dtype}", lambda dtype=dtype: gpu.values(options, dtype, shape, DEVICE, compiled=False))
    case("profile", lambda: gpu.profile(options))


def main() -> None:
    fakecuda.patch_generators()
    torch.Tensor.pin_memory = lambda values, *_: values  # the CPU build of torch pins nothing
    EqMPipeline._execution_device = property(lambda _: DEVICE)
    pipe = tiny_pipeline()
    measures(pipe)
    offloading()
    stages()
    sampling(pipe, STEPS)
    every = dict(found)
    found.clear()
    refuse_float64()
    pipe = tiny_pipeline()
    measures(pipe)
    sampling(pipe, STEPS[:1], ("nag", *SOLVERS, "dopri5, known"))
    print(json.dumps([every, found]))


if __name__ == "__main__":
    main()
