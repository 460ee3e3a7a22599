"""The command `doctor`: what this machine has, measured in seconds, and whether a recipe fits it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache

from eqm_video import options
from eqm_video.codec import BUNDLED, PIXELS
from eqm_video.data import video
from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.output.media import write_mp4
from eqm_video.sampling.option_groups import Overridden
from eqm_video.system import machine
from eqm_video.training import build
from eqm_video.training.config import Config, load_config
from eqm_video.training.estimate import REACHED, Device, count_memory, free_memory, seconds_per_step
from eqm_video.wording import DAY, about, counted, pace

FINE, SLOW, BAD = "ok", "slow", "BAD"
SECONDS = 0.3  # of each measurement
BYTES = 32 * 2**20  # written to measure a disk
SIDE = 1024  # of the matrices that are multiplied
PATIENCE = 3.0  # seconds that the hub has to answer
LEAST_SHM = 2**30  # bytes of /dev/shm: what four workers of a small recipe need
LEAST_ROOM = 5 * 2**30  # bytes of the disk
LEAST_STEPS = 1000  # a training with fewer learns nothing
SMALL_CLIP, SMALL_NETWORK = 16 * 64**2, 6e6  # pixels and parameters of the recipe own_videos_cpu
LABELS = 101  # where a recipe counts them


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what was looked at, what was found, and what to type where it is not fine."""

    state: str
    name: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        """The line, and the advice below it."""
        line = f"{self.state:4}  {self.name:10}  {self.found}"
        return f"{line}\n{'':18}-> {self.advice}" if self.advice else line


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Overridden):
    """Look at this machine: versions, devices, precision, decoders, memory, disk, the hub.

    With a recipe it also says whether its network fits the memory, and about how long its training takes.
    """

    recipe: str | None = option(
        None, positional=True, metavar="RECIPE", help="a YAML file, or a name that `eqm-video recipes` lists"
    )


def main(words: Sequence[str]) -> int:
    """Look, and print a line for each thing as soon as it is known; returns 1 where something will not work."""
    chosen = options.parse(DoctorOptions, words, prog="eqm-video doctor")
    recipe, overrides = chosen.recipe, chosen.overrides
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        raise UserError(f"{recipe} changes a recipe: name it first, as in eqm-video doctor own_videos {recipe}")
    config = None if recipe is None else load_config(recipe, overrides)
    states = []
    for finding in look(config):
        print(finding, flush=True)
        states.append(finding.state)
    bad, slow = states.count(BAD), states.count(SLOW)
    print(f"\n{bad} of {len(states)} will not work, {slow} will be slow" if bad or slow else "\nall is well")
    return 1 if bad else 0


def look(config: Config | None) -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    device = torch.device(
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    folder = Path("." if config is None else config.run.folder)
    yield versions()
    yield devices(device)
    yield from load()
    speed = product_speed(device, torch.float32)
    yield Finding(FINE, "float32", f"{speed / 1e9:,.0f} GFLOP/s in matrix products")
    half = product_speed(device, torch.bfloat16)
    yield precision(device, speed, half)
    yield attention(device)
    yield from decoders()
    yield shared_memory()
    yield disk(folder)
    if config is None or config.codec.name not in (BUNDLED, PIXELS):
        yield hub(None if config is None else config.codec.name)
    if config is not None:
        bf16 = half if machine.has_bf16(device) else speed
        yield from fits(config, Device(machine.device_name(device), device.type, free_memory(device), bf16, speed))


def versions() -> Finding:
    """Python and the libraries that compute."""
    return Finding(FINE, "versions", ", ".join(f"{name} {number}" for name, number in machine.versions().items()))


def devices(device: torch.device) -> Finding:
    """The devices that torch sees."""
    cores, threads = counted(machine.cores(), "core"), counted(torch.get_num_threads(), "thread")
    cpu = f"{machine.processor()}, {cores}, {threads}"
    if device.type == "cuda":
        count = torch.cuda.device_count()
        each = [torch.cuda.get_device_properties(k) for k in range(count)]
        return Finding(FINE, "devices", "; ".join(f"{gpu.name}, {gib(gpu.total_memory)}" for gpu in each) + f"; {cpu}")
    if device.type == "mps":
        return Finding(FINE, "devices", f"Apple GPU; {cpu}")
    return Finding(SLOW, "devices", f"no GPU; {cpu}", "small recipes are for this: demo, own_videos_cpu, actions")


def load() -> Iterator[Finding]:
    """A warning where other work wants the cores: what is measured is then slower than the machine."""
    if not hasattr(os, "getloadavg"):  # Windows
        return
    wanted, cores = os.getloadavg()[0], machine.cores()
    if wanted > cores:
        text = f"{wanted:.1f} processes want {counted(cores, 'core')}: what is measured below is too slow"
        yield Finding(SLOW, "load", text, "type the command again when the others are done")


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of products of large matrices."""
    matrix = torch.randn(SIDE, SIDE, device=device).to(dtype)
    return 2 * SIDE**3 / time_of(lambda: matrix @ matrix, device)


def precision(device: torch.device, speed: float, half: float) -> Finding:
    """The measured speed `half` of bfloat16 beside that of float32, and advice where it does not pay."""
    text = f"{half / 1e9:,.0f} GFLOP/s, {half / speed:.2g} times float32"
    if machine.has_bf16(device) and half > speed:
        return Finding(FINE, "bfloat16", text)
    return Finding(SLOW, "bfloat16", text, "type train.mixed_precision=no here")


def attention(device: torch.device) -> Finding:
    """The time of one call of torch's attention, 16 frames of 256 tokens."""
    tokens = torch.randn(16, 6, 256, 64, device=device)
    seconds = time_of(lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), device)
    names = {"flash": "flash_sdp_enabled", "memory-efficient": "mem_efficient_sdp_enabled", "math": "math_sdp_enabled"}
    allowed = [name for name, query in names.items() if getattr(torch.backends.cuda, query)()]
    kernels = f"; kernels: {', '.join(allowed)}" if device.type == "cuda" else ""
    return Finding(FINE, "attention", f"{1000 * seconds:.1f} ms for 16 frames of 256 tokens{kernels}")


def decoders() -> Iterator[Finding]:
    """The speed at which a video that is written here is read back; then decord."""
    frames = np.random.default_rng(0).integers(0, 255, (24, 128, 128, 3), dtype=np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            write_mp4(path, frames, 8)
            info = video.probe(path)
            seconds = time_of(lambda: video.read_frames(path, range(info.frames), info=info), torch.device("cpu"))
        yield Finding(FINE, "decoder", f"{info.frames / seconds:,.0f} frames of 128 px a second on one core")
    except OSError as error:
        text = f"no temporary file can be written: {error.strerror or error}"
        yield Finding(BAD, "decoder", text, "give a folder with room: export TMPDIR=FOLDER")
    if importlib.util.find_spec("decord") is None:
        yield Finding(SLOW, "decord", "not installed: PyAV reads everything", "pip install decord, where it has wheels")


def shared_memory() -> Finding:
    """/dev/shm, through which the batches of decoding processes go."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding(FINE, "/dev/shm", "this system has none")
    free = shutil.disk_usage(folder).free
    if free >= LEAST_SHM:
        return Finding(FINE, "/dev/shm", f"{gib(free)} free")
    return Finding(SLOW, "/dev/shm", f"{gib(free)} free", "in a container give --shm-size=8g, or type data.workers=0")


def disk(folder: Path) -> Finding:
    """Room and speed of the disk that a run is written to."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            begun = time.perf_counter()
            file.write(os.urandom(BYTES))
            file.flush()
            os.fsync(file.fileno())
            speed = BYTES / (time.perf_counter() - begun)
    except OSError as error:
        return Finding(BAD, "disk", f"{there}: {error.strerror or error}", "give another run.dir=FOLDER")
    text = f"{gib(free)} free in {there}, written at {speed / 2**20:,.0f} MB/s"
    advice = "checkpoints need room: give another run.dir=FOLDER, or train.keep=1"
    return Finding(FINE, "disk", text) if free >= LEAST_ROOM else Finding(SLOW, "disk", text, advice)


def hub(codec: str | None) -> Finding:
    """The answer of the Hugging Face hub, where recipes of 128 pixels and more fetch their codec once."""
    if codec is not None and Path(codec).expanduser().is_dir():
        return Finding(FINE, "codec", f"{codec}, a folder")
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    if codec is not None and all(isinstance(try_to_load_from_cache(codec, name), str) for name in files):
        return Finding(FINE, "codec", f"{codec} was fetched before: no network is needed")
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=PATIENCE):
            return Finding(FINE, "hub", "answers")
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        reason = str(getattr(error, "reason", error))
        advice = "the bundled codec needs none: codec.name=bundled; or give the folder of a codec, codec.name=FOLDER"
        return Finding(SLOW if codec is None else BAD, "hub", f"does not answer ({reason})", advice)


def fits(config: Config, device: Device) -> Iterator[Finding]:
    """Memory and time of a recipe on this device, counted by `training/estimate.py` from its measured speed."""
    downsampling, channels = build.codec_shape(config.codec.name)
    with torch.device("meta"):
        network = build.make_network(config, config.model.num_labels or LABELS, channels)
    size = build.check_size(config, downsampling, network.config.patch_size)
    train, frames = config.train, config.data.frames
    cost = build.measure(network, (1, frames, channels, size, size))
    memory = count_memory(config, network, (frames, channels, size, size), kind=device.kind)
    state = memory.state
    text = f"{cost['parameters'] / 1e6:.1f} M parameters: {gib(state)}, and {gib(memory.peak)} in a step"
    text += "" if device.memory is None else f", of {gib(device.memory)}"
    yield memory_finding(text, state, memory.peak, device.memory, train.batch_size)
    seconds = seconds_per_step(config, device, cost["flops"], frames)
    kind = "cuda" if device.kind == "cuda" else "cpu"
    text = (
        f"about {pace(seconds)} a step, {about(seconds * train.steps)} for {train.steps:,} steps "
        f"(computed: a step at {REACHED[kind]:.0%} of the speed above)"
    )
    if seconds * train.steps <= DAY:
        yield Finding(FINE, "time", text)
    else:
        small = frames * size**2 <= SMALL_CLIP and cost["parameters"] <= SMALL_NETWORK
        recipe = kind == "cpu" and frames > 1 and not small
        yield Finding(SLOW, "time", text, shorter(DAY / seconds, recipe=recipe))


def shorter(steps: float, *, recipe: bool) -> str:
    """Advice for a training of more than a day, which has time for `steps`; recipe: whether one for CPUs is smaller."""
    days = [f"a day is train.steps={int(steps)}"] if steps >= LEAST_STEPS else []
    other = "take the recipe own_videos_cpu" if recipe else "take fewer pixels (data.size) or a smaller model.preset"
    return "; or ".join([*days, other])


def memory_finding(text: str, state: int, peak: int, room: int | None, batch: int) -> Finding:
    """`text`, and advice where the bytes of the training's `state`, or of a step at its `peak`, exceed the `room`.

    batch: clips of a step. Accumulation divides them, and what a step needs beside the state.
    """
    if room is None or peak <= 0.9 * room:
        return Finding(FINE, "memory", text)
    if state > 0.9 * room:
        return Finding(BAD, "memory", text, "take a smaller network, such as model.preset=EqM-Nano/4")
    parts = next((n for n in range(2, batch + 1) if batch % n == 0 and state + (peak - state) / n <= 0.9 * room), None)
    if parts is None:
        return Finding(BAD, "memory", text, "take fewer pixels (data.size), fewer frames, or a smaller model.preset")
    advice = f"type train.accumulation={parts}; or try train.gradient_checkpointing=true"
    return Finding(SLOW, "memory", text, advice)


def time_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the fastest of as many as fit into `SECONDS`, after one that is not counted."""
    work()
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        machine.synchronise(device)
        begun = time.perf_counter()
        work()
        machine.synchronise(device)
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"
