"""All metrics by name: every class with a `name` in the files of this folder."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

import eqm_video.metrics
from eqm_video.errors import UserError
from eqm_video.metrics.metric import Metric

ALIASES = {"fvd": "frechet", "fid": "frechet", "kvd": "kid", "inception-score": "is"}
REQUIRED = {"fvd": "i3d", "fid": "inception", "kvd": "i3d"}  # names that are one network's alone


@cache
def metrics() -> dict[str, Metric]:
    """Every metric, by its name, in the order of the files."""
    every: dict[str, Metric] = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(eqm_video.metrics.__path__)):
        content = vars(importlib.import_module(f"eqm_video.metrics.{module}"))
        for value in content.values():
            is_metric = Metric in getattr(value, "__mro__", ())  # before Python 3.11 issubclass refuses tuple[int]
            if is_metric and value.__module__ == f"eqm_video.metrics.{module}" and hasattr(value, "name"):
                every[value.name] = value()
    return every


def find_metric(name: str, feature: str, option: str = "--metrics ") -> Metric:
    """The metric of a name. UserError for an unknown name, and for one that needs another feature, such as fvd.

    fvd, fid and kvd are names for frechet and kid with the features i3d and inception, and for nothing else. option:
    what precedes the name where it is typed, for messages.
    """
    every = metrics()
    if REQUIRED.get(name, feature) != feature:
        raise UserError(
            f"{option}{name} is a number of the feature {REQUIRED[name]}, and the feature is {feature}: type "
            f"{option}{ALIASES[name]}, or the feature {REQUIRED[name]} with its weights"
        )
    if ALIASES.get(name, name) not in every:
        near = difflib.get_close_matches(name, [*every, *ALIASES], n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{option}{name}: there is no such metric{hint}; type some of {', '.join(every)}")
    return every[ALIASES.get(name, name)]


def title_of(metric: Metric, feature: str, frames: int) -> str:
    """The title of a metric with a feature: FVD, FID, KVD or KID where it is that, else its title and the feature."""
    named = {("frechet", "i3d"): "FVD", ("kid", "i3d"): "KVD"}
    if frames == 1:
        named |= {("frechet", "inception"): "FID", ("kid", "inception"): "KID", ("sfid", "inception"): "sFID"}
    if (metric.name, feature) in named:
        return named[metric.name, feature]
    title = {"kid": "kernel distance", "sfid": "spatial Fréchet distance"}.get(metric.name, metric.title)
    return f"{title} ({feature})" if metric.needs & {"features", "spatial", "windows", "logits"} else title
