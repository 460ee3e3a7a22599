"""Pickles read as plain data: dictionaries, lists, text, numbers and arrays of bytes. No code in them is run.

Python's own reader calls every function that a pickle names. This reader goes through the opcodes of protocol 2, the
protocol of CIFAR-10's files, executes the few that such data need, and refuses all others. Python 2 wrote text as
bytes, Python 3 writes bytes as an encoded text; both forms are supported, and so is numpy's form of an array.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqm_video.errors import UserError

MOST = 500_000  # opcodes; a batch of 10,000 pictures has about 50,000
FUNCTIONS = {
    **dict.fromkeys(("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"), "array"),
    **{"numpy ndarray": "ndarray", "numpy dtype": "dtype", "_codecs encode": "encode"},
}
"""Names that a pickle may have, and their meanings. They are only words: no function of that name is looked up."""

VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda text: text.encode("latin-1")),  # pickletools decodes so
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2"), lambda value: value),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
}


class _NotDataError(Exception):
    """The pickle is damaged, or contains more than data."""


@dataclass(frozen=True)
class _Word:
    """A name of FUNCTIONS on the stack, by its meaning."""

    meaning: str


@dataclass
class _Array:
    """A numpy array on the stack: created empty, then filled by its state."""

    values: np.ndarray | None = None


def read_plain(content: bytes, name: str) -> dict[str, Any]:
    """The dictionary in a pickle: its keys are text, its arrays uint8; text that Python 2 wrote stays bytes.

    `name` is the file's name in errors. UserError for content that is more than data, with the opcode and its position,
    and for a pickle that is damaged or cut short. The size of `content` and MOST bound memory and time.
    """
    reader, opcode, place = _Reader(), "", 0
    try:
        for count, (code, argument, position) in enumerate(pickletools.genops(content)):
            opcode, place = code.name, position
            if count >= MOST:
                raise _NotDataError(f"there are more than {MOST} opcodes")
            reader.step(opcode, argument)
        return reader.result()
    except _NotDataError as error:
        raise UserError(
            f"{name}: refused at the opcode {opcode} (byte {place}): {error}. Only plain data is read, and nothing in "
            "the file was run; it is not one of CIFAR-10's files, or damaged"
        ) from error
    except ValueError as error:  # pickletools: an opcode that does not exist, or an early end
        raise UserError(f"{name} is not a whole pickle: {error} (after byte {place}); get the file again") from error


class _Reader:
    """The stack machine whose program is a pickle, without the instructions that run code."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Execute an opcode; _NotDataError if data do not need it, or its operands are not on the stack."""
        if opcode in VALUES:
            self.stack.append(VALUES[opcode](argument))
        elif opcode == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top(object)
        elif opcode in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _NotDataError(f"it refers to a value number {argument} that is not there")
            self.stack.append(self.memo[argument])
        elif opcode in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            values = self._since_mark() if opcode == "TUPLE" else self._pop(int(opcode[5]))
            self.stack.append(tuple(values))
        elif opcode in ("APPEND", "APPENDS"):
            items = self._since_mark() if opcode == "APPENDS" else self._pop(1)
            self._top(list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            self._set_items(self._since_mark() if opcode == "SETITEMS" else self._pop(2))
        elif opcode == "GLOBAL":
            if argument not in FUNCTIONS:
                raise _NotDataError(f"it names {argument.replace(' ', '.', 1)!r}, which data do not need")
            self.stack.append(_Word(FUNCTIONS[argument]))
        elif opcode == "REDUCE":
            self.stack.append(_call(*self._pop(2)))
        elif opcode == "BUILD":
            _fill(*self._pop(2, keep=1))
        elif opcode == "PROTO" and argument != 2:
            raise _NotDataError(f"it is of protocol {argument}, not 2")
        elif opcode not in ("PROTO", "STOP"):
            raise _NotDataError("data do not need this opcode")

    def result(self) -> dict[str, Any]:
        """The dictionary that is left on the stack at the end."""
        if len(self.stack) != 1 or self.marked or not isinstance(self.stack[0], dict):
            raise _NotDataError("what is left is not one dictionary")
        return {key: value.values if isinstance(value, _Array) else value for key, value in self.stack[0].items()}

    def _pop(self, count: int, keep: int = 0) -> list[Any]:
        """The last `count` values in order; all but the first `keep` of them leave the stack."""
        if len(self.stack) < count:
            raise _NotDataError("the stack is too short")
        values = self.stack[-count:]
        del self.stack[len(self.stack) - count + keep :]
        return values

    def _since_mark(self) -> list[Any]:
        if not self.marked:
            raise _NotDataError("there is no mark")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise _NotDataError(f"there is no {kind.__name__} on the stack")
        return self.stack[-1]

    def _set_items(self, values: list[Any]) -> None:
        target, keys = self._top(dict), values[::2]
        if len(values) % 2 or not all(isinstance(key, bytes | str) for key in keys):
            raise _NotDataError("a dictionary's keys must be text, each with a value")
        target.update(zip((_text(key) for key in keys), values[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """The result of a function of FUNCTIONS: an empty array, the dtype uint8, or bytes."""
    if function == _Word("array") and arguments == (_Word("ndarray"), (0,), b"b"):
        return _Array()
    if function == _Word("dtype") and arguments in (("u1", 0, 1), (b"u1", 0, 1)):
        return _Word("u1")
    match arguments:
        case (str(text), "latin1") if function == _Word("encode"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError as error:
                raise _NotDataError("a text does not stand for bytes") from error
    raise _NotDataError("it calls something with arguments that data do not need")


def _fill(target: Any, state: Any) -> None:
    """Give an array its shape and bytes; the state of the dtype uint8 is ignored."""
    match state:
        case (3, b"|" | "|", *_) if target == _Word("u1"):
            return
        case (int(), tuple(shape), _Word("u1"), bool(fortran), bytes(content)) if isinstance(target, _Array):
            if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(content):
                raise _NotDataError(f"an array of shape {shape} does not have {len(content)} bytes")
            target.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
        case _:
            raise _NotDataError("it sets the state of something that is no array of bytes (uint8)")


def _text(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode("latin-1")
