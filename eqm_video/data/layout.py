"""What a data folder holds: class folders, a flat folder, or UCF-101's official lists. Files are named, not opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eqm_video.data.video import VIDEO_EXTENSIONS
from eqm_video.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
EXTENSIONS = {"videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS}
LIST_FOLDERS = ("", "splits", "ucfTrainTestlist")  # where UCF-101's lists may lie, below the root
SHOWN = 5  # names that an error message quotes before "..."


@dataclass(frozen=True)
class Listing:
    """The files of a data set: paths relative to its root with "/", their labels (-1: none) and the class names."""

    names: list[str]
    label_ids: list[int]
    labels: list[str]
    missing: tuple[str, ...] = ()  # named by a list, not there
    ignored: tuple[str, ...] = ()  # folders that hold files of the kind only deeper down


def list_files(kind: str, root: Path, *, split: str | None = None, fold: int = 1, beside: bool = False) -> Listing:
    """Find the files of `kind` ("videos" or "images") under `root`. UserError where there are none, or too deep.

    `beside`: these are images beside videos, so that errors advise neither another kind nor a split.
    """
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"the {'' if beside else 'data '}folder {root} {problem}.\n{expected(kind, root, beside)}")
    if split not in (None, "train", "test"):
        raise UserError(f"data.split is {split!r}; type train, test, or null for every file")
    lists = next((root / name for name in LIST_FOLDERS if _has_lists(root / name)), None)
    if split is not None:
        if lists is None:
            raise UserError(
                f"data.split={split} needs UCF-101's lists (classInd.txt, {split}list0{fold}.txt) in {root}, "
                f"{root / 'splits'} or {root / 'ucfTrainTestlist'}; type data.split=null to use every file"
            )
        return _listed(root, lists, f"{split}list0{fold}.txt")
    listing = _found(kind, root, beside)
    numbered = lists is not None and (lists / "classInd.txt").is_file() and listing.labels
    return _official(listing, lists) if numbered else listing


def expected(kind: str, root: Path, beside: bool = False) -> str:
    """The layouts that are understood, as text for an error message; `beside` as in `list_files`."""
    one, two = ("run.avi", "jump.mp4") if kind == "videos" else ("n01443537_goldfish.JPEG", "cat.png")
    rows = [
        (f"{root}/CLASS/{one}", "a folder for each class"),
        (f"{root}/{two}", "or all files in one folder, without labels"),
    ]
    if not beside:
        lists = "beside class folders: UCF-101's lists, for data.split=train and test"
        rows.append((f"{root}/splits/trainlist01.txt", lists))
    if kind == "images":
        rows.append(("cifar-10-python.tar.gz", "or CIFAR-10 as it is published, or the folder in it"))
    width = max(len(path) for path, _ in rows)
    lines = [f"  {path.ljust(width)}  {text}" for path, text in rows]
    return "\n".join([f"Expected ({', '.join(EXTENSIONS[kind])}):", *lines])


def quote(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _files(folder: Path, extensions: Sequence[str]) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if e.name.lower().endswith(tuple(extensions)) and not e.name.startswith(".") and e.is_file()
        )


def _deeper(folder: Path, extensions: Sequence[str]) -> bool:
    return any(name.lower().endswith(tuple(extensions)) for _, _, names in os.walk(folder) for name in names)


def _found(kind: str, root: Path, beside: bool) -> Listing:
    """Class folders or a flat folder."""
    extensions = EXTENSIONS[kind]
    flat = _files(root, extensions)
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    inside = {folder: _files(root / folder, extensions) for folder in folders}
    labels = [folder for folder in folders if inside[folder]]
    ignored = tuple(f for f in folders if not inside[f] and _deeper(root / f, extensions))
    if flat and labels:
        raise UserError(
            f"{root} holds {kind} both directly ({quote(flat)}) and in folders ({quote(labels)}): move them into class "
            "folders to have labels, or into one folder to have none"
        )
    if not flat and not labels:
        raise UserError(_nothing(kind, root, ignored, beside))
    names = flat or [f"{label}/{name}" for label in labels for name in inside[label]]
    label_ids = [-1] * len(flat) or [i for i, label in enumerate(labels) for _ in inside[label]]
    return Listing(names, label_ids, labels, ignored=ignored)


def _nothing(kind: str, root: Path, deeper: Sequence[str], beside: bool) -> str:
    """Why there is no data in `root`: too deep, of the other kind, or none at all."""
    other = "images" if kind == "videos" else "videos"
    if deeper:
        return (
            f"the {kind} in {root} lie more than one folder deep (in {quote(deeper)}): only FOLDER/CLASS/file is read; "
            f"perhaps {root / deeper[0]} is the folder to give"
        )
    layouts = expected(kind, root, beside)
    if _deeper(root, EXTENSIONS[other]):
        more = " data.frames=1" if other == "images" else ""
        advice = f"give a folder of {kind}" if beside else f"type data.kind={other}{more}"
        return f"there are no {kind} in {root}, but {other}: {advice}\n{layouts}"
    return f"there are no {kind} in {root}.\n{layouts}"


# ---- UCF-101's lists -------------------------------------------------------------------------------------------------


def _has_lists(folder: Path) -> bool:
    return (folder / "classInd.txt").is_file() or bool(_list_names(folder))


def _list_names(folder: Path) -> list[str]:
    return sorted(file.name for split in ("train", "test") for file in folder.glob(f"{split}list0[1-9].txt"))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _class_names(lists: Path) -> list[str]:
    """classInd.txt, "1 ApplyEyeMakeup" a line, in the order of its numbers; label ids are those numbers minus 1."""
    path = lists / "classInd.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: it numbers the classes, one a line, such as '1 ApplyEyeMakeup'")
    names: dict[int, str] = {}
    for number, line in _lines(path):
        index, _, name = line.partition(" ")
        if not index.isdigit() or not name.strip() or int(index) in names:
            raise UserError(f"{path}, line {number}: got {line!r}; write '1 ApplyEyeMakeup', each number once")
        names[int(index)] = name.strip()
    if sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) != len(names):
        raise UserError(f"{path}: the classes must be numbered 1, 2, 3, ..., and have different names")
    return [names[index] for index in sorted(names)]


def _listed(root: Path, lists: Path, filename: str) -> Listing:
    """The files that one official list names, "Class/v_x.avi 1" or "Class/v_x.avi" a line."""
    path = lists / filename
    if not path.is_file():
        there = sorted(file.name for file in lists.glob("*list0[1-9].txt"))
        raise UserError(
            f"there is no {filename} in {lists}; there are {', '.join(there)}: choose split and fold by them"
        )
    labels = _class_names(lists)
    numbers = {label: number for number, label in enumerate(labels)}
    names: dict[str, int] = {}
    missing = []
    for number, line in _lines(path):
        head, _, last = line.rpartition(" ")
        name, stated = (head.strip(), int(last)) if head and last.isdigit() else (line, None)
        parts = PurePosixPath(name.replace("\\", "/")).parts
        where = f"{path}, line {number}"
        if ".." in parts or parts[0].startswith("/") or ":" in parts[0]:
            raise UserError(f"{where}: {name!r} points outside of {root}; write Class/file")
        if len(parts) < 2 or parts[0] not in numbers:
            raise UserError(
                f"{where}: {name!r} does not start with a class of {lists / 'classInd.txt'}; write Class/file"
            )
        label = numbers[parts[0]]
        if stated is not None and stated != label + 1:
            raise UserError(f"{where}: gives {parts[0]} the number {stated}, but classInd.txt says {label + 1}")
        if (root / Path(*parts)).is_file():
            names["/".join(parts)] = label
        else:
            missing.append("/".join(parts))
    if not names:
        raise UserError(
            f"{path} names {len(missing)} files and none of them is in {root} (such as {quote(missing[:1])})"
        )
    return Listing(list(names), list(names.values()), labels, missing=tuple(missing))


def _official(listing: Listing, lists: Path) -> Listing:
    """Number the classes of found folders as classInd.txt does."""
    labels = _class_names(lists)
    unknown = [label for label in listing.labels if label not in labels]
    if unknown:
        raise UserError(f"{lists / 'classInd.txt'} does not number the class folders {quote(unknown)}; add them")
    numbers = [labels.index(label) for label in listing.labels]
    return Listing(listing.names, [numbers[i] for i in listing.label_ids], labels, ignored=listing.ignored)
