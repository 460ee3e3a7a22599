"""The command `cache`: the latents of every frame of a recipe's data, encoded once and kept on disk."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from eqm_video import options
from eqm_video.codec import Codec
from eqm_video.data.latent_cache import SETTINGS, LatentCache, Work
from eqm_video.data.layout import quote
from eqm_video.errors import UserError
from eqm_video.options import narrower
from eqm_video.output.outputs import CACHED, claim_output
from eqm_video.sampling.option_groups import Dry, Recipe, Written
from eqm_video.system import machine, waits
from eqm_video.system.claims import removed_if_empty
from eqm_video.system.files import write_record
from eqm_video.training import build
from eqm_video.training import launcher as launch
from eqm_video.training.config import Config, load_config
from eqm_video.training.data import HELD_OUT, IMAGES, INDEX, VIDEOS, LatentCaches, open_set
from eqm_video.training.lock import LOCK, lock_run
from eqm_video.training.recipes import check_root
from eqm_video.wording import counted, storage


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Recipe, Dry, Written):
    """Encode every frame of a recipe's data once, and keep the latents on disk.

    Training with data.latents=cache:DIR then decodes no video and needs no codec but for previews and the export. All
    files of data.root, data.images and held_out.root are encoded, whatever the split. The same command goes on where it
    was stopped, adds files that are new or changed, and forgets those that are gone.

    With several processes type `accelerate launch -m eqm_video cache ...`.
    """

    out: Path = narrower(help="folder of the latents, which training takes as data.latents=cache:DIR")


@dataclass(frozen=True)
class Part:
    """One of the data sets of a recipe: its files, its cache, and what is missing there."""

    name: str
    data: Any
    cache: LatentCache
    missing: list[int]

    @property
    def bytes(self) -> int:
        """Bytes of the moments that are missing."""
        frames = sum(self.data.length(index) for index in self.missing)
        return frames * self.cache.frame_bytes * (1 + self.cache.settings["flip"])

    def summary(self) -> str:
        """The part in a line: files, frames, and what there is to do."""
        data, cache = self.data, self.cache
        frames = sum(data.length(index) for index in range(len(data)))
        size = frames * cache.frame_bytes * (1 + cache.settings["flip"])
        return (
            f"{data.root}: {counted(len(data), cache.settings['kind'][:-1])}, {counted(frames, 'frame')}, moments "
            f"{'x'.join(map(str, cache.shape))} float16{' of both mirrorings' * cache.settings['flip']}: "
            f"{storage(size)}; {len(data) - len(self.missing)} are there, {len(self.missing)} are to be encoded"
        )


def main(words: Sequence[str]) -> int:
    """Fill the cache; returns the exit status. UserError for a mistake of the user."""
    chosen = options.parse(CacheOptions, words, prog="eqm-video cache")
    config = load_config(chosen.recipe, chosen.changes)
    accelerator = build.make_accelerator(config)
    launch.check_launch(accelerator)
    for note in build.note_precision(config, accelerator.device):
        accelerator.print(note)
    claim_output(chosen.out, "cache", probe=accelerator.is_main_process)
    codec = build.open_codec(config, weights=False)
    build.check_size(config, codec.downsampling, 1)
    caches = LatentCaches.of(config, codec, chosen.out)
    locked = accelerator.is_main_process and not chosen.dry_run
    with _locked(chosen.out) if locked else nullcontext():
        parts = list(_parts(config, caches, accelerator, chosen.dry_run))
        _check_room(parts, chosen.out)
        if chosen.dry_run:
            return 0
        begun = time.monotonic()
        try:
            unreadable = [name for part in parts for name in _fill(part, config, codec, accelerator)]
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("the same command goes on from here") from interrupt
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for part in parts:
                part.cache.seal(part.data)
            _record(chosen.out, words, parts, unreadable, time.monotonic() - begun, accelerator)
        accelerator.wait_for_everyone()
    return 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder. If the command fails before it encodes anything, the folders made for the lock are deleted."""
    with ExitStack() as stack:
        stack.enter_context(removed_if_empty(folder, LOCK))
        stack.enter_context(lock_run(folder, f"--out {folder}", "filling"))
        for part in CACHED:
            stack.enter_context(removed_if_empty(folder / part, SETTINGS))
        yield


def _parts(config: Config, caches: LatentCaches, accelerator: Accelerator, dry: bool) -> Iterator[Part]:
    """The data sets of the recipe, each with all its files. The main process alone scans the files."""
    data = config.data
    check_root(data.root)
    places = [
        (VIDEOS, data.kind, data.root),
        (IMAGES, "images", data.images),
        (HELD_OUT, data.kind, config.held_out.root),
    ]
    for name, kind, root in places:
        if root is None:
            continue
        cache = caches.cache(name).read()
        if accelerator.is_main_process and not dry:
            cache.begin()  # before the scan, whose record alone would not mark the folder as this package's
        with accelerator.main_process_first():
            files = {"kind": kind, "root": root, "split": None, "fold": 1, "buckets": (), "short": "repeat"}
            frames = {"frames": 1, "frame_interval": 1, "flip": cache.settings["flip"]}
            index, main = None if dry else cache.folder / INDEX, accelerator.is_main_process
            whole = open_set(replace(data, **files, **frames), index, None, beside=name == IMAGES, again=main)
        accelerator.print(whole.report.summary())
        part = Part(name, whole, cache, cache.missing(whole) if accelerator.is_main_process else [])
        accelerator.print(part.summary())
        yield part


def _check_room(parts: Sequence[Part], folder: Path) -> None:
    """UserError where the disk has less room than the missing latents take."""
    needed = sum(part.bytes for part in parts)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the latents take {storage(needed)}, but the disk of --out {folder} has {storage(free)} free: "
            "make room, choose another folder, or take a smaller data.size"
        )


def _fill(part: Part, config: Config, codec: Codec, accelerator: Accelerator) -> list[str]:
    """Encode this process's share of the missing files; returns the files of all processes that do not decode."""
    works: list[Any] = [None]
    if accelerator.is_main_process:
        works = [part.cache.plan(part.data, part.missing, accelerator.num_processes)]
    if accelerator.num_processes > 1:
        broadcast_object_list(works)
    mine: list[Work] = works[0][accelerator.process_index :: accelerator.num_processes]
    frames = sum(slot.frames for work in mine for slot in work.slots)
    if mine:
        codec.to(accelerator.device)
    unreadable: list[str] = []
    main = accelerator.is_main_process
    with waits.bar(what=f"encoding {part.name}", total=frames, unit="frame", shown=main and frames > 0) as bar:
        for work in mine:
            device = accelerator.device
            unreadable += part.cache.fill(part.data, work, codec, device, config.data.workers, bar.update)
    return gather_object(unreadable) if accelerator.num_processes > 1 else unreadable


def _record(
    folder: Path, words: Sequence[str], parts: Sequence[Part], unreadable: list[str], seconds: float, accelerator: Any
) -> None:
    """Write cache.json, and say what was done."""
    done = {
        part.name: {"root": str(part.data.root), "files": len(part.data), "encoded": len(part.missing)}
        for part in parts
    }
    write_record(
        folder / "cache.json",
        {
            "command": shlex.join(["eqm-video", "cache", *map(str, words)]),
            "parts": done,
            "unreadable": unreadable,
            "seconds": round(seconds, 1),
            "machine": machine.describe(accelerator.device),
        },
    )
    if unreadable:
        print(
            f"{counted(len(unreadable), 'file')} cannot be decoded to the end and get substitutes: {quote(unreadable)}"
        )
    encoded = sum(len(part.missing) for part in parts)
    print(f"encoded {counted(encoded, 'file')} in {seconds:.0f} s; train with data.latents=cache:{folder}")
