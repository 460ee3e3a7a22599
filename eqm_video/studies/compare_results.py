"""The command `compare-results`: results of `evaluate` side by side, of one protocol only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError, short
from eqm_video.evaluation.protocol import check_same, digest_of
from eqm_video.options import narrower, option
from eqm_video.output.tables import aligned, number
from eqm_video.studies.study import Report, Study
from eqm_video.system.reading import read_json

RECORD = "evaluate.json"


@dataclass(frozen=True, kw_only=True)
class CompareResults(Study, group="compare"):
    """Results of `evaluate` side by side; results of different protocols, or of other data, are refused.

    The refusal names the choice that differs. The table says whether the 95 % intervals of two values overlap: such a
    difference may be chance.

    Example: eqm-video compare-results results/a results/b
    """

    results: tuple[Path, ...] = option(
        positional=True, metavar="RESULT", help="folders that `evaluate` wrote, or their evaluate.json"
    )
    out: Path | None = narrower(None, unset="the table is shown only")

    def check(self) -> None:
        """UserError for a single result."""
        if len(self.results) < 2:
            raise UserError("compare-results compares two results or more: give another folder")

    def run(self) -> Report:
        """Read, check and compare."""
        names = [str(path) for path in self.results]
        records = [read_result(path) for path in self.results]
        for name, record in zip(names[1:], records[1:], strict=True):
            check_same(records[0]["protocol"], record["protocol"], (names[0], name))
            check_data(records[0], record, (names[0], name))
        shared = [key for key in records[0]["metrics"] if all(key in record["metrics"] for record in records)]
        if not shared:
            raise UserError("the results have no metric in common: evaluate them with the same --metrics")
        rows = {key: [record["metrics"][key] for record in records] for key in shared}
        numbers = {
            "protocol_hash": records[0]["protocol_hash"],
            "results": names,
            "metrics": {
                key: {"values": [result["value"] for result in each], "overlap": overlap(each)}
                for key, each in rows.items()
            },
        }
        return Report(numbers, table(names, rows, numbers))


def read_result(path: Path) -> dict[str, Any]:
    """A record of `evaluate`, its hash checked against its protocol; UserError for anything else."""
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no {file}; give a folder that `evaluate` wrote")
    record = read_json(file)
    if not {"protocol", "protocol_hash", "metrics"} <= record.keys():
        raise UserError(f"{file} is no result of `evaluate`; give the evaluate.json that it wrote")
    if digest_of(record["protocol"]) != record["protocol_hash"]:
        raise UserError(
            f"{file} was changed: its protocol no longer has the hash {record['protocol_hash']}; evaluate again"
        )
    return record


def check_data(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """UserError where the real clips are of other files."""
    sides = [record.get("data") or {} for record in (first, second)]
    keys = ["identity", *(["content"] if all("content" in side for side in sides) else [])]  # of all bytes, if known
    left, right = ("/".join(str(side.get(key)) for key in keys) for side in sides)
    if left != right:
        raise UserError(
            f"numbers against other data do not compare: data is {short(left)} in {names[0]} and {short(right)} in "
            f"{names[1]}; evaluate both with the same --data"
        )


def overlap(results: list[Mapping[str, Any]]) -> bool | None:
    """True where the intervals of the lowest and the highest value overlap; None where a value has no interval."""
    if any(result["interval"] is None for result in results):
        return None
    ordered = sorted(results, key=lambda result: result["value"])
    return ordered[0]["interval"][1] >= ordered[-1]["interval"][0]


def table(names: list[str], rows: Mapping[str, list[Mapping[str, Any]]], numbers: Mapping[str, Any]) -> str:
    """A row for each metric, a column for each result."""
    lines = [["metric", *names, "intervals"]]
    said = {True: "overlap", False: "apart", None: ""}
    for key, each in rows.items():
        cells = []
        for result in each:
            bounds = "" if result["interval"] is None else " ({} to {})".format(*map(number, result["interval"]))
            cells.append(f"{number(result['value'])}{bounds}")
        lines.append([each[0]["title"], *cells, said[numbers["metrics"][key]["overlap"]]])
    return f"{aligned(lines)}\n\nprotocol {numbers['protocol_hash']}"
