"""The Fréchet distance of spatial features (sFID)."""

from __future__ import annotations

from eqm_video.metrics.frechet import Frechet


class SpatialFrechet(Frechet, name="sfid", title="sFID"):
    """Fréchet distance of a network's spatial features, which see the layout of a picture (sFID).

    Nash et al. (2021), arXiv 2103.03841; openai/guided-diffusion takes the first 7 channels of Inception's mixed_6,
    17 x 17. Here it is the output named spatial of the feature in use.
    """

    needs = frozenset({"spatial"})
    part = "spatial"
