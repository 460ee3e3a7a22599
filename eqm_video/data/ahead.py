"""Files read ahead of their use: several at once, each in a thread, and given in the order in which they are wanted."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from eqm_video.data.video import VideoDecodeError

PIECES = 2  # of a file that wait at a time
POLL = 0.2  # seconds after which a thread looks whether its pieces are still wanted

Read = TypeVar("Read")


def read_ahead(
    indices: Sequence[int], read: Callable[[int], Iterable[Read]], threads: int
) -> Iterator[tuple[int, Read | VideoDecodeError]]:
    """The items of `read(index)`, file after file, as (index, item); a VideoDecodeError is the last item of its file.

    `threads` files are read at once, of each no more than a few items ahead; 0 reads where it is called.
    """
    for index, items in _opened(indices, read, threads) if threads else ((index, read(index)) for index in indices):
        try:
            for item in items:
                yield index, item
        except VideoDecodeError as error:
            yield index, error


def _opened(
    indices: Sequence[int], read: Callable[[int], Iterable[Read]], threads: int
) -> Iterator[tuple[int, Iterator[Read]]]:
    """Every file with its items, while those after it are being read."""
    left, running, ended = iter(indices), deque(), threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(running) < threads and (index := next(left, None)) is not None:
                    items: queue.Queue[Any] = queue.Queue(PIECES)
                    running.append((index, items, pool.submit(_fill, items, read, index, ended)))
                if not running:
                    return
                index, items, filled = running.popleft()
                yield index, _taken(items, filled)
        finally:
            ended.set()


def _taken(items: queue.Queue, filled: Any) -> Iterator[Any]:
    """The items of one file; what ended its thread is raised here."""
    while (item := items.get()) is not None:
        yield item[0]
    filled.result()


def _fill(items: queue.Queue, read: Callable[[int], Iterable[Any]], index: int, ended: threading.Event) -> None:
    """The thread of one file; it ends early where nobody wants the rest."""
    try:
        for item in read(index):
            if not _put(items, (item,), ended):
                return
    finally:
        _put(items, None, ended)


def _put(items: queue.Queue, item: Any, ended: threading.Event) -> bool:
    while not ended.is_set():
        try:
            items.put(item, timeout=POLL)
        except queue.Full:
            continue
        return True
    return False
