"""The best evaluation of a run so far, by one metric: its step, whose checkpoint is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Best:
    """The best value of a metric so far, and its step; None before the first.

    metric: its name. under: what the values depend on besides the weights, such as a protocol's hash: a best of another
    protocol does not count. State and comparison are the same on every process.
    """

    def __init__(self, metric: str, under: str) -> None:
        self.metric, self.under = metric, under
        self.step: int | None = None
        self.value: float | None = None
        self.loss: float | None = None  # lower is better
        self._before: Mapping[str, Any] = self.state()

    def offer(self, step: int, value: float, loss: float) -> bool:
        """Take the value of a step if its loss is the lowest so far; returns whether it is. NaN never is."""
        if not (self.loss is None or loss < self.loss) or loss != loss:
            return False
        self._before = self.state()
        self.step, self.value, self.loss = step, value, loss
        return True

    def back(self) -> None:
        """Undo the newest `offer` that was taken: its checkpoint could not be written."""
        self._set(self._before)

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint's record, which `load` takes."""
        return {"metric": self.metric, "under": self.under, "step": self.step, "value": self.value, "loss": self.loss}

    def load(self, state: Mapping[str, Any] | None) -> bool:
        """Go on from the `state` of a checkpoint; returns False, and forgets it, if it is of other values."""
        same = state is not None and (state.get("metric"), state.get("under")) == (self.metric, self.under)
        if same:
            self._set(state)
        return same

    def _set(self, state: Mapping[str, Any]) -> None:
        self.step, self.value, self.loss = state["step"], state["value"], state["loss"]
