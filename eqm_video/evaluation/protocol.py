"""Protocols: everything that a number depends on besides the two sets of clips, with a hash; and the published ones.

FVD of one checkpoint was reported between 168 and 320 by people who all wrote "FVD": frames, stride, split, order,
resize and covariance differed. A protocol names each of them, and numbers of different protocols are never compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from eqm_video.errors import UserError, short
from eqm_video.features.feature import Input
from eqm_video.metrics.metric import Statistics

DIGITS = 16  # of a hash that are shown


@dataclass(frozen=True)
class Protocol:
    """The way in which clips are chosen, prepared and compared.

    count, real_count: clips of the samples and of the real set; None is all there are. frames: of a clip, None: as the
    samples have. stride: every K-th frame of the real videos; None: what comes nearest to the samples' frame rate.
    split, fold: of official lists, or "all". order: how the real videos are taken where there are more than real_count:
    sorted by name, or shuffled with `seed`. window: which frames of a real video: the first ones, the central ones, at
    a random place drawn from `seed` and the file's name, or every window without overlap. size: (height, width), None:
    as the samples have. crop: how real videos, and samples of another size, come to that size; adm is this package's
    reader: box, then bicubic, then the centre. jpeg: quality of a JPEG round trip of both sets before the network, 0 is
    none. fit, antialias: the resize to the network's input. window_frames: of metrics over time.
    """

    feature: str = "transnet"
    count: int | None = None
    real_count: int | None = None
    frames: int | None = None
    stride: int | None = None
    split: Literal["train", "test", "all"] = "all"
    fold: int = 1
    order: Literal["sorted", "shuffled"] = "shuffled"
    seed: int = 0
    window: Literal["first", "central", "random", "every"] = "random"
    size: tuple[int, int] | None = None
    crop: str = "adm"
    colour: str = "rgb, full range, 8 bits"
    jpeg: int = 0
    fit: Literal["stretch", "crop"] = "stretch"
    antialias: bool = True
    window_frames: int = 16
    statistics: Statistics = field(default_factory=Statistics)

    def input(self, layout: str = "bcthw", size: int | None = 224, values: str = "-1:1") -> Input:
        """The input of i3d and of networks of files under this protocol."""
        return Input(layout, None if size is None else (size, size), values, self.fit, self.antialias)

    def resolved(self, feature: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        """Every choice as plain JSON, with `values` for those that the data decided, and the feature's record."""
        settled = replace(self, **values)
        content = json.loads(json.dumps(asdict(settled)))
        return {**content, "feature": json.loads(json.dumps(dict(feature)))}


@dataclass(frozen=True)
class Preset:
    """A protocol with a name: what it is for, its metrics, and the source of each choice."""

    says: str
    protocol: Protocol
    metrics: tuple[str, ...]
    sources: Mapping[str, str]


_STYLEGAN_V = "universome/stylegan-v@1f630af"
_LATTE = "Vchitect/Latte@03d2bda"
_PVDM = "sihyun-yu/PVDM@29de527"
_CDFVD = "songweige/content-debiased-fvd@0919683"
_JEDI = "oooolga/JEDi@1507896"
_EQF = "Rose-STL-Lab/eqf@fd954f8"

_stylegan_v = Protocol(
    feature="i3d",
    count=2048,
    real_count=2048,
    frames=16,
    stride=1,
    order="sorted",
    jpeg=75,
    antialias=False,
    statistics=Statistics(ddof=0),
)

PRESETS: dict[str, Preset] = {
    "default": Preset(
        "this package's own: an unbiased MMD of features that need no download",
        Protocol(),
        ("mmd", "frechet", "precision", "recall", "flicker", "motion", "frozen"),
        {
            "feature": "transnet: its weights come with a package",
            "statistics": "degree 2, coef 0, gamma 1/D as in JEDi, without its bias",
        },
    ),
    "stylegan-v": Preset(
        "FVD as StyleGAN-V's script computes it",
        _stylegan_v,
        ("fvd",),
        {
            "count": f"{_STYLEGAN_V} src/metrics/metric_main.py fvd2048_16f: max_real=2048, num_gen=2048, 16 frames",
            "feature": f"{_STYLEGAN_V} src/metrics/frechet_video_distance.py: i3d_torchscript.pt, return_features=True",
            "stride": f"{_STYLEGAN_V} src/metrics/frechet_video_distance.py compute_fvd: subsample_factor=1",
            "window": f"{_STYLEGAN_V} src/metrics/frechet_video_distance.py: random offset of real videos only",
            "order": f"{_STYLEGAN_V} src/metrics/metric_utils.py: the first max_items of the sorted folder",
            "split": f"{_STYLEGAN_V} issue 30: train and test of UCF-101 together",
            "jpeg": f"{_STYLEGAN_V} src/scripts/convert_videos_to_frames.py: save(q=95), which Pillow ignores: 75",
            "antialias": "the resize inside the file: bilinear to 224x224, not smoothed",
            "statistics": f"{_STYLEGAN_V} src/metrics/metric_utils.py get_mean_cov: divided by N",
        },
    ),
    "latte": Preset(
        "FVD as Latte's script computes it: StyleGAN-V's, with other real clips",
        replace(_stylegan_v, stride=3, order="shuffled"),
        ("fvd",),
        {
            "count": f"{_LATTE} tools/metrics/metric_main.py fvd2048_16f",
            "stride": f"{_LATTE} tools/metrics: realdata_subsample_factor=3",
            "order": f"{_LATTE} tools/metrics/metric_utils.py: random.sample, without a seed; here the protocol's",
            "jpeg": f"{_LATTE} tools/convert_videos_to_frames.py: save(q=95), which Pillow ignores: 75",
            "statistics": "as StyleGAN-V",
        },
    ),
    "pvdm": Preset(
        "FVD as PVDM computes it",
        Protocol(
            feature="i3d",
            count=2048,
            real_count=2048,
            frames=16,
            stride=1,
            split="train",
            order="shuffled",
            seed=42,
            fit="crop",
            antialias=False,
            statistics=Statistics(ddof=1),
        ),
        ("fvd",),
        {
            "fit": f"{_PVDM} evals/fvd/fvd.py preprocess_single: bilinear, short side 224, then the centre",
            "statistics": f"{_PVDM} evals/fvd/fvd.py cov: divided by N - 1",
            "order": f"{_PVDM} tools/dataloader.py: the training list, shuffled with seed 42",
            "count": "2048 in the paper; the number that is printed in training uses 16 videos",
        },
    ),
    "cd-fvd": Preset(
        "FVD as the package cd-fvd computes it with model='i3d'",
        Protocol(
            feature="i3d",
            count=2048,
            frames=16,
            stride=1,
            order="shuffled",
            seed=42,
            antialias=False,
            statistics=Statistics(ddof=0),
        ),
        ("fvd",),
        {
            "count": f"{_CDFVD} cdfvd/fvd.py: n_real='full', n_fake=2048, seed=42",
            "antialias": f"{_CDFVD} cdfvd/third_party/i3d/utils.py: bilinear straight to 224x224",
            "frames": f"{_CDFVD} cdfvd/fvd.py load_videos: sequence_length=16, sample_every_n_frames=1",
            "statistics": f"{_CDFVD} cdfvd/utils/metric_utils.py: divided by N",
        },
    ),
    "jedi": Preset(
        "JEDi: the MMD of V-JEPA features; give --features hub:NAME of a V-JEPA 2, or your export of V-JEPA",
        Protocol(
            feature="hub:facebook/vjepa2-vith-fpc64-256",
            count=5000,
            real_count=5000,
            frames=16,
            fit="crop",
            statistics=Statistics(degree=2, coef=0.0, biased=True, scale=100.0),
        ),
        ("mmd",),
        {
            "feature": f"{_JEDI} videojedi/V_JEPA.py: V-JEPA ViT-H/16, pooled by a probe; transformers has V-JEPA 2, "
            "whose numbers are others",
            "count": f"{_JEDI} videojedi/JEDi.py load_features: num_samples=5000",
            "statistics": f"{_JEDI} videojedi/mmd_polynomial.py: degree 2, coef0 0, all pairs; JEDi.py: times 100",
        },
    ),
    "eqf": Preset(
        "FVD as Equilibrium Forcing computes it",
        Protocol(
            feature="i3d",
            count=256,
            real_count=256,
            window="first",
            order="sorted",
            antialias=False,
            window_frames=25,
            statistics=Statistics(ddof=1),
        ),
        ("fvd", "over-time"),
        {
            "feature": f"{_EQF} algorithms/common/metrics/video/video_metric.py: StyleGAN-V's file, resize=True",
            "statistics": f"{_EQF} algorithms/common/metrics/video/base_fid.py: torchmetrics' sums, divided by N - 1",
            "window_frames": f"{_EQF} algorithms/common/metrics/video/fvd_over_time.py: clip_len=25, gen_stride=25",
            "count": "its page: 256 videos, one seed; known frames are the real ones in both sets",
        },
    ),
}


def digest_of(resolved: Mapping[str, Any]) -> str:
    """The hash of a resolved protocol: SHA-256 of its JSON with sorted keys, shortened."""
    text = json.dumps(resolved, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value, value) for every choice that differs between two resolved protocols; keys as section.key."""
    rows = []
    for key in sorted({*first, *second}):
        left, right = first.get(key), second.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            rows += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            rows.append((f"{prefix}{key}", left, right))
    return rows


def check_same(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """UserError, naming the keys, where two resolved protocols differ."""
    rows = differences(first, second)
    if rows:
        said = "; ".join(
            f"{key} is {short(left)} in {names[0]} and {short(right)} in {names[1]}" for key, left, right in rows
        )
        raise UserError(f"numbers of different protocols do not compare: {said}; evaluate both under one protocol")
