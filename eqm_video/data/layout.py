"""The layout of a data folder: class folders, a flat folder, or UCF-101's official lists. Files are not opened."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from eqm_video.data.entries import FOLDER, UNREADABLE, Entries, below, leads_back, merge, read_entries
from eqm_video.data.video import VIDEO_EXTENSIONS
from eqm_video.errors import UserError
from eqm_video.names import as_label, shown

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
EXTENSIONS = {"videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS}
LIST_FOLDERS = ("", "splits", "ucfTrainTestlist")  # where UCF-101's lists may lie, below the root
SHOWN = 5  # names that a message quotes before "and N more"


@dataclass(frozen=True)
class Listing:
    """The files of a data set: paths relative to its root with "/", their labels (-1: none) and the class names."""

    names: list[str]
    label_ids: list[int]
    labels: list[str]
    missing: tuple[str, ...] = ()  # named by a list, but not in the folder
    ignored: tuple[str, ...] = ()  # folders with files of the kind only deeper down
    empty: tuple[str, ...] = ()  # class folders without a file of the kind
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # names that are not read, by reason
    official: bool = False  # a list numbers the labels; the numbers do not depend on the files


def list_files(
    kind: str,
    root: Path,
    *,
    split: str | None = None,
    fold: int = 1,
    beside: bool = False,
    split_option: str = "data.split",
) -> Listing:
    """Find the files of `kind` ("videos" or "images") under `root`. UserError if there are none, or too deep.

    `beside` means images beside videos, for which errors suggest neither another kind nor a split. `split_option` is
    the user's name of `split` in errors: a key of a recipe, or an option of a command, such as --split. Errors of such
    a command suggest no keys either, which it does not take.
    """
    beside = beside or split_option.startswith("--")
    check_folder(kind, root, beside)
    if split not in (None, "train", "test"):
        raise UserError(f"{split_option} is {split!r}; type train, test, or {_every(split_option)} for every file")
    lists = find_lists(root)
    if split is not None:
        if lists is None:
            raise UserError(_no_lists(root, split, fold, split_option))
        return _listed(root, lists, f"{split}list0{fold}.txt")
    listing = _list_folders(kind, root, beside, lists)
    numbered = lists is not None and os.path.isfile(lists / "classInd.txt") and listing.labels
    return _official(listing, lists) if numbered else listing


def check_folder(kind: str, root: Path, beside: bool = False) -> None:
    """UserError unless `root` is a folder that can be read."""
    name = f"the {'' if beside else 'data '}folder {shown(str(root))}"
    try:
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.isfile(root):
            raise UserError(f"{name} does not exist.\n{expected(kind, root, beside)}") from error
        parent = Path(root).parent
        raise UserError(
            f"{name} is a file, not a folder: give {shown(str(parent))}, which holds it.\n"
            f"{expected(kind, parent, beside)}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not a path, such as a name with a zero byte
        raise UserError(
            f"{name} cannot be read ({getattr(error, 'strerror', error)}): mend that, or give another folder"
        ) from error
    if not os.access(root, os.X_OK):
        raise UserError(f"{name} cannot be entered (no permission): give yourself that right, or another folder")


def find_lists(root: Path) -> Path | None:
    """The folder with UCF-101's lists of a data folder; None if there are none."""
    return next((root / name for name in LIST_FOLDERS if _has_lists(root / name)), None)


def _every(option: str) -> str:
    return "all" if option.startswith("--") else "null"


def _no_lists(root: Path, split: str, fold: int, option: str) -> str:
    """The error for a split without lists: the files that it needs, and the option to type instead."""
    typed = f"{option} " if option.startswith("--") else f"{option}="
    advice = f"type {typed}{_every(option)} to use every file"
    if option == "held_out.split":
        advice = (
            "type held_out.fraction=0.1 to hold out a tenth of your own files, held_out.root=FOLDER for a folder of "
            "such files, or held_out.split=null for none"
        )
    return (
        f"{typed}{split} needs UCF-101's lists (classInd.txt, {split}list0{fold}.txt) in {root}, {root / 'splits'} or "
        f"{root / 'ucfTrainTestlist'}; {advice}"
    )


def expected(kind: str, root: Path, beside: bool = False) -> str:
    """The supported layouts, as text for an error message; `beside` as in `list_files`."""
    first, second = ("run.avi", "jump.mp4") if kind == "videos" else ("n01443537_goldfish.JPEG", "cat.png")
    rows = [
        (f"{root}/CLASS/{first}", "a folder for each class"),
        (f"{root}/{second}", "or all files in one folder, without labels"),
    ]
    if not beside:
        lists = "beside class folders: UCF-101's lists, for data.split=train and test"
        rows.append((f"{root}/splits/trainlist01.txt", lists))
    if kind == "images":
        rows.append(("cifar-10-python.tar.gz", "or CIFAR-10 as published, or the folder in it"))
    width = max(len(path) for path, _ in rows)
    lines = [f"  {path.ljust(width)}  {text}" for path, text in rows]
    return "\n".join([f"Expected ({', '.join(EXTENSIONS[kind])}):", *lines])


def quote(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shown, names[:SHOWN])) + more


def _deeper(folder: Path, extensions: Sequence[str]) -> bool:
    return any(name.lower().endswith(tuple(extensions)) for _, _, names in os.walk(folder) for name in names)


def _list_folders(kind: str, root: Path, beside: bool, lists: Path | None) -> Listing:
    """The files in class folders, or in a flat folder."""
    extensions = EXTENSIONS[kind]
    top = read_entries(root, extensions)
    if lists == root:
        _forget_lists(top)
    inside: dict[str, Entries] = {}
    for folder in [folder for folder in top.folders if lists != root / folder]:
        if leads_back(root / folder):
            top.pass_over("link to a folder that it lies in", folder)
            continue
        try:
            inside[folder] = read_entries(root / folder, extensions)
        except OSError:
            top.pass_over(UNREADABLE, folder)
    flat, folders = top.files, [folder for folder in inside if inside[folder].files]
    bare = [folder for folder in inside if not inside[folder].files]
    ignored = tuple(folder for folder in bare if _deeper(root / folder, extensions))
    if flat and folders:
        raise UserError(
            f"{root} holds {kind} both directly ({quote(flat)}) and in folders ({quote(folders)}): move them into "
            "class folders to have labels, or into one folder to have none"
        )
    if not flat and not folders:
        raise UserError(_nothing(kind, root, ignored, beside, merge(_passed(top, inside))))
    empty = [folder for folder in bare if folder not in ignored]
    for folder in empty if flat else [folder for folder in empty if folder.lower().endswith(extensions)]:
        top.pass_over(FOLDER, folder)
    labels = [as_label(folder) for folder in folders]
    _check_twins(root, folders, labels)
    names = flat or [f"{folder}/{name}" for folder in folders for name in inside[folder].files]
    label_ids = [-1] * len(flat) or [i for i, folder in enumerate(folders) for _ in inside[folder].files]
    plain = {*ignored, *top.passed_over.get(FOLDER, ())}  # not class folders: their content is not reported
    passed = merge(
        _passed(top, {} if flat else {name: entries for name, entries in inside.items() if name not in plain})
    )
    classes = () if flat else tuple(folder for folder in empty if folder not in plain)
    return Listing(names, label_ids, labels, ignored=ignored, empty=classes, passed_over=passed)


def _passed(top: Entries, inside: dict[str, Entries]) -> list[dict[str, list[str]]]:
    """Skipped names of the data folder and its folders, by reason; folders in class folders are not read."""
    parts = [top.passed_over]
    for folder, entries in inside.items():
        parts += [below(folder, entries.passed_over), below(folder, {FOLDER: entries.folders})]
    return [{reason: names for reason, names in part.items() if names} for part in parts]


def _forget_lists(top: Entries) -> None:
    """Remove UCF-101's lists from the skipped names: they are read."""
    texts = top.passed_over.pop(".txt", [])
    lists = re.compile(r"classInd\.txt|(train|test)list0[1-9]\.txt")
    for name in [name for name in texts if not lists.fullmatch(name)]:
        top.pass_over(".txt", name)


def _check_twins(root: Path, folders: Sequence[str], labels: Sequence[str]) -> None:
    """UserError if two class folders have the same name with differently stored accents."""
    first: dict[str, str] = {}
    for folder, label in zip(folders, labels, strict=True):
        if label in first:
            raise UserError(
                f"{root} holds two class folders called {label}, stored as {first[label]!a} and {folder!a}: "
                "rename one of them, or move its files into the other"
            )
        first[label] = folder


def _nothing(kind: str, root: Path, deeper: Sequence[str], beside: bool, passed_over: dict[str, list[str]]) -> str:
    """The error for a folder without data: they are too deep, of the other kind, or missing."""
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
    listed = f"; there {'is' if len(passed_over) == 1 else 'are'}: {tally(passed_over)}" if passed_over else ""
    return f"there are no {kind} in {root}{listed}.\n{layouts}"


def tally(passed_over: dict[str, list[str]]) -> str:
    """Skipped names by reason, as text: ".txt 3 (a.txt, b.txt, c.txt), dangling link 1 (d.mp4)"."""
    return ", ".join(f"{reason} {len(names)} ({quote(names)})" for reason, names in passed_over.items())


# ---- UCF-101's lists -------------------------------------------------------------------------------------------------


def _has_lists(folder: Path) -> bool:
    return os.path.isfile(folder / "classInd.txt") or bool(_list_names(folder))


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
    """The classes of classInd.txt ("1 ApplyEyeMakeup" a line) by number; label ids are the numbers minus 1."""
    path = lists / "classInd.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: it numbers the classes, one a line, such as '1 ApplyEyeMakeup'")
    names: dict[int, str] = {}
    for number, line in _lines(path):
        index, _, name = line.partition(" ")
        if not index.isdigit() or not name.strip() or int(index) in names:
            raise UserError(f"{path}, line {number}: got {line!r}; write '1 ApplyEyeMakeup', each number once")
        names[int(index)] = as_label(name.strip())
    if sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) != len(names):
        raise UserError(f"{path}: the classes must be numbered 1, 2, 3, ..., and have different names")
    return [names[index] for index in sorted(names)]


def _listed(root: Path, lists: Path, filename: str) -> Listing:
    """The files of an official list, "Class/v_x.avi 1" or "Class/v_x.avi" a line."""
    path = lists / filename
    if not path.is_file():
        existing = sorted(file.name for file in lists.glob("*list0[1-9].txt"))
        raise UserError(
            f"there is no {filename} in {lists}; there are {', '.join(existing)}: choose split and fold by them"
        )
    labels = _class_names(lists)
    numbers = {label: number for number, label in enumerate(labels)}
    names: dict[str, int] = {}
    missing = []
    for number, line in _lines(path):
        head, _, last = line.rpartition(" ")
        name, stated = (head.strip(), int(last)) if head and last.isdigit() else (line, None)
        parts = PurePosixPath(name.replace("\\", "/")).parts
        place = f"{path}, line {number}"
        if ".." in parts or parts[0].startswith("/") or ":" in parts[0]:
            raise UserError(f"{place}: {name!r} points outside of {root}; write Class/file")
        if len(parts) < 2 or as_label(parts[0]) not in numbers:
            raise UserError(
                f"{place}: {name!r} does not start with a class of {lists / 'classInd.txt'}; write Class/file"
            )
        label = numbers[as_label(parts[0])]
        if stated is not None and stated != label + 1:
            raise UserError(f"{place}: gives {parts[0]} the number {stated}, but classInd.txt says {label + 1}")
        if (stored := _stored(root, "/".join(parts))) is not None:
            names[stored] = label
        else:
            missing.append("/".join(parts))
    if not names:
        raise UserError(
            f"{path} names {len(missing)} files and none of them is in {root} (such as {quote(missing[:1])})"
        )
    return Listing(list(names), list(names.values()), labels, missing=tuple(missing), official=True)


def _stored(root: Path, name: str) -> str | None:
    """The stored name of a listed file, in whichever form its accents are; None if the file is missing."""
    forms = dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])
    return next((form for form in forms if os.path.isfile(root / form)), None)


def _official(listing: Listing, lists: Path) -> Listing:
    """The listing with its classes numbered as in classInd.txt; UserError for a class without a number."""
    labels = _class_names(lists)
    unknown = [label for label in listing.labels if label not in labels]
    if unknown:
        raise UserError(f"{lists / 'classInd.txt'} does not number the class folders {quote(unknown)}; add them")
    numbers = [labels.index(label) for label in listing.labels]
    return replace(listing, label_ids=[numbers[i] for i in listing.label_ids], labels=labels, official=True)
