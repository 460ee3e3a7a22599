"""The settings of the page, made of the fields of `Sampling`: their names, help, bounds and sentences have one home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from eqm_video.errors import UserError
from eqm_video.options import Declared, declared, narrower
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling

MOST_STEPS = 1000  # updates of a descent: others wait for theirs
LARGEST_SEED = 2**63 - 1
ELSEWHERE = ("composition", "plain_sum")  # fields that a tab of their own has


@dataclass(frozen=True, kw_only=True)
class Offered(Sampling):
    """The fields of `Sampling` within the bounds of the page."""

    steps: int | None = narrower(None, least=1, most=MOST_STEPS)


@dataclass(frozen=True)
class Control:
    """A field as people see it.

    kind: "choice" (of `choices`, "" is the default), "switch", or "text". unset: the value that an empty field has.
    """

    entry: Declared
    unset: str

    @property
    def name(self) -> str:
        """The name of the field in `Sampling`."""
        return self.entry.name

    @property
    def title(self) -> str:
        """The name in plain words."""
        return self.entry.name.replace("_", " ")

    @property
    def kind(self) -> str:
        """The kind of the control."""
        return "switch" if self.entry.type is bool else "choice" if self.entry.option.choices else "text"

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a "choice"."""
        return self.entry.option.choices

    @property
    def help(self) -> str:
        """The help text of the command line with the bounds. Choices say their default, text fields show it."""
        limits = f" ({self.entry.limits().removeprefix('of ')})" if self.entry.limits() else ""
        unset = f"; empty: {self.unset}" if self.kind == "choice" else ""
        return f"{self.entry.option.help}{limits}{unset}"

    def read(self, typed: Any) -> Any:
        """The value that was typed or chosen; the default for an empty field. UserError for a wrong value."""
        if self.kind == "switch":
            return bool(typed)
        text = str(typed if typed is not None else "").strip()
        if not text:
            return None if self.entry.default is MISSING else self.entry.default
        if self.entry.count == "one":
            return self.entry.read(text, self.title)
        words = text.replace(",", " ").split()
        return self.entry.check(tuple(self.entry.read(word, self.title) for word in words), self.title)


def controls(pipeline: EqMPipeline) -> list[Control]:
    """The controls of a model: those that `eqm-video sample --help` shows come first."""
    own = pipeline.config.sampler
    entries = [entry for name, entry in declared(Offered).items() if name not in ELSEWHERE]
    made = []
    for entry in sorted(entries, key=lambda entry: entry.option.rare):
        said = entry.option.unset if entry.default is None else str(entry.default)
        model = own.get("kind" if entry.name == "sampler" else entry.name)
        if entry.default is None and model is not None:
            said = f"{model:g}, the model's" if isinstance(model, float) else f"{model}, the model's"
        made.append(Control(entry, said or "none"))
    return made


def read_sampling(offered: Sequence[Control], typed: Sequence[Any], **more: Any) -> Sampling:
    """The `Sampling` of the controls' values, in their order; `more` are further fields. UserError for wrong values."""
    values = {control.name: control.read(value) for control, value in zip(offered, typed, strict=True)}
    return Sampling(**values, **more)


def read_seed(typed: Any) -> int:
    """A seed, as typed; UserError for anything but a whole number from 0 on."""
    return read_whole(typed, "the seed", 0, LARGEST_SEED)


def read_whole(typed: Any, name: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`, as typed; UserError, which calls it `name`, for anything else."""
    text = str(typed).strip().removesuffix(".0")
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise UserError(f"{name} is {text[:20] or 'empty'}: it must be a whole number from {least} to {most}")
    return int(text)


def read_terms(
    labels: Sequence[Any], weights: Sequence[Any], known: Mapping[int, str]
) -> tuple[tuple[str, float], ...]:
    """The terms (label, weight) of a composition; empty rows are left out.

    UserError for labels that the model does not have, for weights that are no numbers, and for no terms at all.
    """
    terms = []
    for label, weight in zip(labels, weights, strict=True):
        if not label:
            continue
        if label not in known.values():
            raise UserError(f"the label {str(label)[:40]!r} is not one of this model: {', '.join(known.values())}")
        try:
            value = float(weight)
        except (TypeError, ValueError) as error:
            raise UserError(f"the weight of {label} is {str(weight)[:20]!r}: it must be a number, such as 1") from error
        if not abs(value) <= 100:
            raise UserError(f"the weight of {label} is {value:g}: it must be a number from -100 to 100")
        terms.append((label, value))
    if not terms:
        raise UserError("choose at least one label to compose")
    return tuple(terms)
