"""Reads files of `torch.save`; a file chooses neither functions nor classes.

A torch file is a zip of records: one pickle, and the bytes of each tensor. A pickle is a program
that may call any function by its name. `torch.load(weights_only=True)` allows fewer names, but
calls them with the file's arguments, which may read beyond a record, take all memory or crash the
interpreter. So `_Machine` runs the pickle here. It knows the few instructions that `torch.save`
writes, and calls only the functions of `_READINGS`, which check their arguments. The sizes of
tensors must fit the records, and each record must fit its checksum in the zip.
"""

from __future__ import annotations

import pickletools
import re
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

# Each instruction makes one object at most. Normalisation statistics of images are long lists.
_MAX_INSTRUCTIONS = 10_000_000
_MAX_DEPTH = 64
_MAX_DIMENSIONS = 16
# A list that is written once may stand in several places. A copy for each place costs memory, so
# their number is limited: to so many for each instruction.
_MAX_COPIES = 10

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# Errors of Python, numpy and torch where sizes, indices or types do not fit.
_MISTAKES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
# numpy's booleans and numbers of 1 to 8 bytes, but no objects.
_ARRAY_TYPE = re.compile(r"b1|[iu][1248]|f[248]")


class TorchFileError(Exception):
    """A file cannot be read: it holds other things than tensors, numbers and text."""


class DamagedError(TorchFileError):
    """A file is no torch file, or has changed since torch wrote it."""


def read_torch_file(file: IO[bytes]) -> Any:
    """Reads a file of `torch.save` onto the CPU.

    Args:
        file: the file's content, seekable.

    Returns:
        dicts (`OrderedDict` and `Counter` of whole numbers too), lists, tuples, texts, numbers,
        truth values, None, dense tensors and numpy arrays of numbers.

    Raises:
        DamagedError: it is no torch file, or has changed since torch wrote it.
        TorchFileError: it holds an object of another kind; the message names the object.
    """
    records = _Records(file)
    try:
        machine = _Machine(records)
        content = machine.run()
        return _Copy(_MAX_COPIES * machine.instructions).of(content)
    except TorchFileError:
        raise
    except _MISTAKES as error:
        raise DamagedError(f"its pickle is damaged ({type(error).__name__})") from error


class _Records:
    """The records of the zip, each checked against its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        try:
            archive = zipfile.ZipFile(file)
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > size:
                raise DamagedError("its records overlap or are compressed")
            found: dict[str, bytes] = {}
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.filename in found:
                    raise DamagedError(f"its record '{entry.filename[:80]}' is not as torch writes")
                found[entry.filename] = archive.read(entry)
        except zipfile.BadZipFile as error:
            file.seek(0)
            if file.read(2) != b"PK":
                raise DamagedError("it is no zip, as torch.save writes since torch 1.6") from error
            raise DamagedError(f"its zip says '{error}'") from error
        except (EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError) as error:
            raise DamagedError(f"its records cannot be read ({type(error).__name__})") from error
        folders = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise DamagedError("it has no record 'data.pkl'")
        if found.get(f"{folders[0]}byteorder", b"little") != sys.byteorder.encode():
            raise TorchFileError("its numbers are in the byte order of another kind of machine")
        self.pickle = found.pop(f"{folders[0]}data.pkl")
        self._found, self._folder = found, folders[0]
        self._storages: dict[str, torch.Tensor] = {}

    def storage(self, key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        """A record as a vector `[length]`; later calls return the same vector."""
        if key not in self._storages:
            name = f"{self._folder}data/{key}"
            if name not in self._found:
                raise DamagedError(f"it lacks the record '{name[:80]}'")
            content = bytearray(self._found.pop(name))
            vector = torch.empty(0, dtype=dtype)
            if content:
                vector = torch.frombuffer(content, dtype=torch.uint8)
                if dtype == torch.bool and int(vector.max()) > 1:
                    raise DamagedError(f"its record '{name[:80]}' holds no truth values")
                if len(content) % dtype.itemsize:
                    raise DamagedError(f"its record '{name[:80]}' is cut off")
                vector = vector.view(dtype)
            self._storages[key] = vector
        vector = self._storages[key]
        if vector.dtype != dtype or len(vector) != length:
            raise DamagedError(f"a tensor does not fit its record '{key[:80]}'")
        return vector


class _Storage:
    """Stands for the numbers of a tensor, as a vector."""

    __slots__ = ("vector",)

    def __init__(self, vector: torch.Tensor) -> None:
        self.vector = vector


class _Name:
    """A name in the pickle; `_READINGS` or `_STORAGES` gives its meaning."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _ArrayType:
    """Stands for a numpy dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        """Takes the byte order; a type of numbers has no other state."""
        match state:
            case (int(), ("<" | ">" | "|" | "=") as order, None, None, None, *_):
                self.order = order
            case _:
                raise TorchFileError("it holds a numpy type that is not one of numbers")

    def numbers(self, data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
        """Bytes as a vector of this type."""
        if self.code == "b1" and max(data, default=0) > 1:
            raise DamagedError("a numpy array of truth values holds others")
        return np.frombuffer(data, np.dtype(f"{self.order.replace('|', '=')}{self.code}"))


class _Array:
    """Stands for a numpy array until its content is known."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def build(self, state: Any) -> None:
        """Takes shape, type and bytes."""
        self.state = state

    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The array, in the byte order of this machine."""
        match self.state:
            case (
                int(),
                tuple() as shape,
                _ArrayType() as kind,
                bool() as fortran,
                bytes() as data,
            ):
                _check_extent(shape, "a numpy array")
                array = kind.numbers(data)
                if array.size != _product(shape):
                    raise DamagedError("a numpy array does not fit its bytes")
                array = array.reshape(shape, order="F" if fortran else "C")
                return array.astype(array.dtype.newbyteorder("="))
        raise TorchFileError("it holds a numpy array that is not one of numbers")


# -- readings of the names --


def _ordered_dict(records: _Records) -> Any:
    return OrderedDict()


def _counter(records: _Records, counts: Any = None) -> Any:
    counts = {} if counts is None else counts
    if type(counts) is not dict or any(
        type(n) is not int for entry in counts.items() for n in entry
    ):
        raise TorchFileError("it holds a Counter of other things than whole numbers")
    return Counter(counts)


def _size(records: _Records, sizes: Any = ()) -> Any:
    _check_extent(sizes, "a shape")
    return sizes


def _encoded(records: _Records, text: Any, encoding: Any) -> Any:
    # Protocol 2 writes bytes as text.
    if type(text) is not str or encoding != "latin1":
        raise TorchFileError("it holds text in an encoding of its own")
    return text.encode("latin1")


def _numpy_type(records: _Records, code: Any, align: Any = False, copy: Any = False) -> Any:
    if type(code) is not str or not _ARRAY_TYPE.fullmatch(code):
        raise TorchFileError("it holds a numpy type that is not one of numbers")
    return _ArrayType(code)


def _numpy_array(records: _Records, kind: Any, shape: Any, code: Any) -> Any:
    if not isinstance(kind, _Name) or kind.text != "numpy.ndarray" or shape != (0,):
        raise TorchFileError("it holds a numpy array that is not one of numbers")
    return _Array()


def _numpy_scalar(records: _Records, kind: Any, data: Any) -> Any:
    if not isinstance(kind, _ArrayType) or type(data) is not bytes:
        raise TorchFileError("it holds a numpy number that is none")
    numbers = kind.numbers(data)
    if len(numbers) != 1:
        raise DamagedError("a numpy number does not fit its bytes")
    return numbers[0].item()


def _tensor(
    records: _Records,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Any:
    if not isinstance(storage, _Storage):
        raise TorchFileError("it holds a tensor without numbers")
    vector = storage.vector
    if type(requires_grad) is not bool or hooks or metadata:
        raise TorchFileError("it holds a tensor with hooks or of a special kind")
    _check_extent(size, "a tensor")
    _check_extent(stride, "a tensor")
    _check_extent((offset,), "a tensor")
    if len(size) != len(stride):
        raise DamagedError("a tensor has more sizes than strides")
    number = _product(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if number > len(vector) or (number and last >= len(vector)):
        raise DamagedError("a tensor is larger than its record")
    tensor = vector.as_strided(size, stride, offset) if number else vector.new_empty(size)
    return tensor.requires_grad_(requires_grad and tensor.is_floating_point())


def _parameter(records: _Records, data: Any, requires_grad: Any, hooks: Any) -> Any:
    if type(data) is not torch.Tensor or hooks:
        raise TorchFileError("it holds a parameter without numbers")
    return data.detach().requires_grad_(bool(requires_grad) and data.is_floating_point())


_READINGS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "_codecs.encode": _encoded,
    "numpy.dtype": _numpy_type,
    # The module is `_core` in numpy 2, and `core` in numpy 1.
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray.scalar": _numpy_scalar,
}
_NAMES = {*_READINGS, *_STORAGES, "numpy.ndarray"}


def _check_extent(numbers: Any, what: str) -> None:
    if (
        type(numbers) is not tuple
        or len(numbers) > _MAX_DIMENSIONS
        or any(type(n) is not int or not 0 <= n < 2**48 for n in numbers)
    ):
        raise DamagedError(f"{what} has a size that cannot be")


def _product(sizes: tuple[int, ...]) -> int:
    number = 1
    for n in sizes:
        number *= n
    return number


class _Machine:
    """Runs a pickle with the instructions that `torch.save` writes, and no others."""

    def __init__(self, records: _Records) -> None:
        self._records = records
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.instructions = 0

    def run(self) -> Any:
        """Returns the object that the pickle describes."""
        for opcode, arg, _ in pickletools.genops(self._records.pickle):
            self.instructions += 1
            if self.instructions > _MAX_INSTRUCTIONS:
                raise TorchFileError(f"it holds more than {_MAX_INSTRUCTIONS:,} objects")
            if opcode.name == "STOP":
                break
            self._execute(opcode.name, arg)
        if len(self._stack) != 1 or self._marks:
            raise DamagedError("its pickle is cut off")
        return self._stack[0]

    def _execute(self, name: str, arg: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                if not -(2**63) <= arg < 2**64:
                    raise TorchFileError("it holds a number of more than 64 bits")
                stack.append(arg)
            case "BINFLOAT" | "BINUNICODE":
                stack.append(arg)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                items = [stack.pop() for _ in range(n)]
                stack.append(tuple(reversed(items)))
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                self._stack = self._marks.pop()
                if name == "TUPLE":
                    self._stack.append(tuple(stack))
                elif name == "APPENDS":
                    _append(self._stack[-1], stack)
                else:
                    _set(self._stack[-1], stack)
            case "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[arg])
            case "GLOBAL":
                stack.append(_named(arg))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._read(function, arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise TorchFileError(f"it holds the pickle instruction {name}")

    def _read(self, function: Any, arguments: Any) -> Any:
        reading = _READINGS.get(function.text) if isinstance(function, _Name) else None
        if reading is None or type(arguments) is not tuple:
            raise TorchFileError("it calls something that is no function")
        try:
            return reading(self._records, *arguments)
        except TypeError as error:  # more or fewer arguments than the reading takes
            raise TorchFileError(f"it calls '{function.text}' as torch does not") from error

    def _storage(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", _Name(text=kind), str() as key, str(), int() as length):
                if kind in _STORAGES:
                    return _Storage(self._records.storage(key, _STORAGES[kind], length))
        raise TorchFileError("it refers to something that is no tensor's record")


def _named(arg: str) -> _Name:
    text = arg.replace(" ", ".", 1)
    if text not in _NAMES:
        raise TorchFileError(f"it holds a pickled '{text[:80]}'")
    return _Name(text)


def _append(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise DamagedError("its pickle appends to something that is no list")
    target.extend(items)


def _set(target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict):
        raise DamagedError("its pickle sets keys of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, bool, type(None), float):
            raise TorchFileError("it holds a dict whose keys are neither text nor numbers")
        target[key] = value


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Array | _ArrayType):
        target.build(state)
    elif type(target) is OrderedDict and type(state) is dict:
        # There torch keeps the version of each layer; it reads nothing else of it.
        notes = state.get("_metadata")
        if type(notes) is OrderedDict:
            versions: OrderedDict[str, dict[str, int]] = OrderedDict()
            for name, note in notes.items():
                version = note.get("version") if type(note) is dict else None
                versions[name] = {"version": version} if type(version) is int else {}
            target._metadata = versions  # type: ignore[attr-defined]
    else:
        raise TorchFileError("it changes the state of an object")


class _Copy:
    """Copies the content: arrays replace their stand-ins, and other objects are refused.

    Args:
        budget: number of values that the copy may have; a list within itself has no end.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def of(self, value: Any, depth: int = 0) -> Any:
        """The value, in dicts, lists and tuples of its own."""
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise TorchFileError("its lists lie too deep within each other, or within themselves")
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            copied: dict[Any, Any] = kind(
                (self._plain(k), self.of(v, depth + 1)) for k, v in value.items()
            )
            if hasattr(value, "_metadata"):
                copied._metadata = value._metadata  # type: ignore[attr-defined]
            return copied
        if kind is list or kind is tuple:
            return kind(self.of(v, depth + 1) for v in value)
        if kind is _Array:
            return value.array()
        return self._plain(value)

    @staticmethod
    def _plain(value: Any) -> Any:
        if type(value) is str:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DamagedError("it holds text that is no Unicode") from error
        elif type(value) not in (int, float, bool, type(None), torch.Tensor, Counter):
            raise TorchFileError("it holds something that is neither tensor, number nor text")
        return value
