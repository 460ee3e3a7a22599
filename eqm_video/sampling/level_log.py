"""The log of a closed loop in samples.json: how far frames were from the levels that their steps should have led to.

Legend: B samples of a batch, N samples, S steps, T frames, W windows of a long video.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.sampling.folder import SampleFolder
from eqm_video.sampling.long import Long


def by_sample(levels: Tensor, steps: int) -> NDArray[np.float32]:
    """The log (2, S, B, T) of a descent with the batch first: (B, 2, steps, T), NaN after the last evaluation."""
    log = levels.float().movedim(2, 0).numpy()
    return np.pad(log, [(0, 0), (0, 0), (0, max(0, steps - log.shape[2])), (0, 0)], constant_values=np.nan)


def corrected(levels: Tensor, known: Tensor) -> NDArray[np.float64]:
    """The sum of all corrections of a frame, mean over the unknown frames of each sample: (B,); `known` (B, T)."""
    sums = levels[1].double().nan_to_num(0).sum(dim=0)
    unknown = ~known.cpu()
    return ((sums * unknown).sum(dim=1) / unknown.sum(dim=1)).numpy()


def level_log(folder: SampleFolder, long: Long | None) -> dict[str, Any] | None:
    """The entry `levels` of samples.json, means over the samples; None without a closed loop.

    gamma, correction: (S, T), of every frame at each evaluation; None while no sample's frame moved. evaluations (T,):
    of every frame. For a long video: correction (W,), the sum of all corrections of a new frame, mean over the frames.
    A correction above 0 means that frames were nearer to the data than their steps said.
    """
    if long:
        shifts = folder.kept("shifts")
        return None if shifts is None else {"correction": _listed(shifts.mean(axis=0))}
    log, nfe = folder.kept("levels"), folder.kept("framenfe")
    if log is None or nfe is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of frames that moved in no sample
        gamma, correction = np.nanmean(log.astype(np.float64), axis=0)
    return {"gamma": _listed(gamma), "correction": _listed(correction), "evaluations": nfe.mean(axis=0).tolist()}


def _listed(values: NDArray[np.float64]) -> Any:
    """Nested lists, rounded to 6 digits, with None for NaN."""
    return np.where(np.isnan(values), None, np.round(values, 6)).tolist()
