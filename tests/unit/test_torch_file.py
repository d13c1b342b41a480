"""Files that are made to harm whoever reads them: each is refused, and nothing of it runs."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymimic.torch_file import DamagedError, TorchFileError, read_torch_file

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "data" / "checkpoints"


def read(data: bytes) -> Any:
    return read_torch_file(io.BytesIO(data))


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def torch_file(pickled: bytes, **records: bytes) -> bytes:
    """A torch file with a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


# -- readable files --


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.rglob("*.pth")), ids=lambda path: path.stem)
def test_robomimics_checkpoints_are_read_as_torch_reads_them(path: Path) -> None:
    assert_same(read(path.read_bytes()), torch.load(path, weights_only=True))


def test_all_kinds_of_plain_values() -> None:
    content = {
        "float": torch.randn(3, 4),
        "transposed": torch.arange(12).view(3, 4).t(),
        "part": torch.arange(10.0)[3:7:2],
        "expanded no more than its storage": torch.arange(6)[None],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 5),
        "types": [torch.ones(2, dtype=t) for t in (torch.bfloat16, torch.float16, torch.uint8)],
        "bool": torch.tensor([True, False]),
        "learned": torch.ones(2, requires_grad=True),
        "counter": Counter([3, 3, 4]),
        "order": OrderedDict(b=1, a=2),
        "numbers": [0, -1, 255, 65535, 2**31, -(2**40), 1.5, float("inf"), True, None],
        "nested": ((1, (2, 3)), [[]], {}, {1: {2: "ü"}}),
        "net": torch.nn.BatchNorm1d(3).state_dict(),
    }
    data = saved(content)
    found = read(data)
    assert_same(found, torch.load(io.BytesIO(data), weights_only=True))
    assert found["net"]._metadata == content["net"]._metadata


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.array(7, np.int16),
        np.float64(2.5),
        np.uint8(200),
        np.bool_(True),
    ],
)
def test_arrays_and_numbers_of_numpy(array: Any) -> None:
    found = read(saved({"x": array}))["x"]
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.ndarray) == isinstance(array, np.ndarray)
    assert np.asarray(found).dtype.isnative


def test_names_of_numpy_1() -> None:
    data = pickle.dumps({"x": np.arange(3.0), "y": np.float32(1.5)}, protocol=2)
    assert b"numpy._core" in data
    found = read(torch_file(data.replace(b"numpy._core", b"numpy.core")))
    assert (found["x"].tolist(), found["y"]) == ([0.0, 1.0, 2.0], 1.5)


def test_a_parameter_becomes_a_tensor() -> None:
    found = read(saved({"x": torch.nn.Parameter(torch.ones(3))}))["x"]
    assert type(found) is torch.Tensor
    assert found.requires_grad


def assert_same(found: Any, expected: Any, path: str = "") -> None:
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key, value in expected.items():
            assert_same(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    elif isinstance(expected, torch.Tensor):
        assert found.requires_grad == expected.requires_grad, path
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    else:
        assert found == expected, path


# -- refused files --

# A pickle's instructions, to write programs that no pickler would.
MARK, DICT, LIST, TUPLE_0, REDUCE, NEWOBJ, BUILD, ITEM = (
    b"(",
    b"}",
    b"]",
    b")",
    b"R",
    b"\x81",
    b"b",
    b"s",
)


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def value(x: Any) -> bytes:
    """The instructions that make a plain value."""
    return pickle.dumps(x, protocol=2)[2:-1]


def text(x: str) -> bytes:
    return b"X" + struct.pack("<I", len(x)) + x.encode()


def tuple_of(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + REDUCE


def program(*parts: bytes) -> bytes:
    """A pickle of ``{"x": …}``."""
    return b"\x80\x02" + DICT + text("x") + b"".join(parts) + ITEM + b"."


def storage(kind: str = "torch.FloatStorage", key: str = "0", length: int = 4) -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), value(length)) + b"Q"


def tensor(size: Any, stride: Any, offset: Any = 0, of: bytes | None = None) -> bytes:
    return call(
        "torch._utils._rebuild_tensor_v2",
        *(of or storage(), value(offset), value(size), value(stride), value(False)),
        call("collections.OrderedDict"),
    )


BYTES = call("_codecs.encode", text("A" * 16), text("latin1"))
OBJECT = call("numpy.dtype", text("O8"), value(False), value(True))
FLOAT = call("numpy.dtype", text("f8"), value(False), value(True))
ARRAY = call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), value((0,)), BYTES)
DEEP = TUPLE_0 + b"\x85" * 200_000
LAUGHS = (
    LIST
    + b"q\x00"
    + b"".join(
        LIST + MARK + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" + b"q" + bytes([i + 1])
        for i in range(60)
    )
)

PROGRAMS = {
    # numpy: objects out of bytes, memory of the file's choice, constructors
    "object dtype": OBJECT,
    "object array": ARRAY + tuple_of(value(1), value((2,)), OBJECT, value(False), BYTES) + BUILD,
    "object scalar": call("numpy._core.multiarray.scalar", OBJECT, BYTES),
    "array over a buffer": call("numpy.ndarray", value((2,)), FLOAT, BYTES),
    "array of an object": name("numpy.ndarray") + tuple_of(value((2,)), FLOAT) + NEWOBJ,
    "array of terabytes": call("numpy.ndarray", value((2**42,))),
    "reconstructed terabytes": call(
        "numpy._core.multiarray._reconstruct", name("numpy.ndarray"), value((2**42,)), BYTES
    ),
    "reconstructed subclass": call(
        "numpy._core.multiarray._reconstruct", name("torch.Tensor"), value((0,)), BYTES
    ),
    "reconstructed by name": call(
        "numpy._core.multiarray._reconstruct", text("numpy.ndarray"), value((0,)), BYTES
    ),
    "more numbers than bytes": ARRAY
    + tuple_of(value(1), value((999,)), FLOAT, value(False), BYTES)
    + BUILD,
    "negative shape": ARRAY
    + tuple_of(value(1), value((-1, -2)), FLOAT, value(False), BYTES)
    + BUILD,
    "array of a list": ARRAY
    + tuple_of(value(1), value((2,)), FLOAT, value(False), value([1, 2]))
    + BUILD,
    "array without content": ARRAY,
    "array with a dict as state": ARRAY + value({"dtype": "O", "shape": (1,)}) + BUILD,
    "array called again": ARRAY + TUPLE_0 + REDUCE,
    "structured dtype": call("numpy.dtype", text("V8"), value(False), value(True)),
    "dtype of fields": call("numpy.dtype", value([("a", "O")])),
    "dtype of a comma": call("numpy.dtype", text("f8,O"), value(False), value(True)),
    "dtype of text": call("numpy.dtype", text("U2000000000"), value(False), value(True)),
    "dtype of dates": call("numpy.dtype", text("M8[ns]"), value(False), value(True)),
    "dtype with fields as state": FLOAT + value((3, "<", None, ("a",), {"a": 1}, 8, 1, 0)) + BUILD,
    "dtype with a dict as state": FLOAT + value({"kind": "O"}) + BUILD,
    # callables
    "shell": call("os.system", text("true")),
    "posix": call("posix.system", text("true")),
    "eval": call("builtins.eval", text("1")),
    "attribute": call("builtins.getattr", value(1), text("real")),
    "numpy's own loader": call("numpy.load", text("x.npy")),
    "torch's own loader": call("torch.load", text("x.pth")),
    "a result that is called": call("collections.OrderedDict") + TUPLE_0 + REDUCE,
    "a number that is called": value(1) + TUPLE_0 + REDUCE,
    "a storage type that is called": call("torch.FloatStorage", value(2**40)),
    "arguments that are no tuple": name("collections.OrderedDict") + value([1]) + REDUCE,
    "too many arguments": call("collections.OrderedDict", value([("a", 1)])),
    "named arguments": name("collections.OrderedDict") + TUPLE_0 + DICT + b"\x92",
    "instance": b"(icollections\nOrderedDict\n",
    "object": MARK + name("collections.OrderedDict") + b"o",
    "name from the stack": text("os") + text("system") + b"\x93",
    "extension": b"\x82\x01",
    "persistent name": b"Pos\n",
    "bare name": name("collections.OrderedDict"),
    "bare storage": storage(),
    "another kind of storage": tuple_of(text("module"), name("torch.FloatStorage")) + b"Q",
    # torch's own list of harmless names would construct these
    "bytearray of terabytes": call("builtins.bytearray", value(2**42)),
    "set": call("builtins.set", value([1])),
    "complex": call("builtins.complex", value(1), value(2)),
    "tensor of terabytes": call("torch.Tensor", value(2**42)),
    "meta tensor": call(
        "torch._utils._rebuild_meta_tensor_no_storage", value(1), value((2,)), value((1,)), value(1)
    ),
    "sparse tensor": call("torch._utils._rebuild_sparse_tensor", value(1), value((1, 2))),
    "quantised tensor": call("torch._utils._rebuild_qtensor", storage(), value(0)),
    "wrapped tensor": call("torch._utils._rebuild_wrapper_subclass", value(1)),
    "tensor of numpy": call("torch._utils._rebuild_device_tensor_from_numpy", value(1)),
    "tensor with attributes": call("torch._tensor._rebuild_from_type_v2", value(1)),
    "device": call("torch.device", text("cuda")),
    # tensors beyond their records
    "larger than its record": tensor((5,), (1,)),
    "larger by its stride": tensor((2,), (4,)),
    "larger by its offset": tensor((1,), (1,), 4),
    "before its record": tensor((1,), (1,), -1),
    "negative stride": tensor((4,), (-1,)),
    "negative size": tensor((-4,), (1,)),
    "size that overflows": tensor((2**62, 8), (0, 0)),
    "one number without end": tensor((2**40,), (0,)),
    "a hundred dimensions": tensor((1,) * 100, (1,) * 100),
    "more sizes than strides": tensor((2, 2), (1,)),
    "size that is a list": tensor([4], [1]),
    "size of floats": tensor((4.0,), (1.0,)),
    "record that is not there": tensor((1,), (1,), of=storage(key="1")),
    "record elsewhere": tensor((1,), (1,), of=storage(key="../version")),
    "record of another length": tensor((1,), (1,), of=storage(length=2**40)),
    "record of another type": tensor((2,), (1,), of=storage())
    + ITEM
    + text("y")
    + tensor((2,), (1,), of=storage("torch.DoubleStorage", length=2)),
    "complex numbers": tensor((1,), (1,), of=storage("torch.ComplexFloatStorage", length=2)),
    "tensor of a number": tensor((1,), (1,), of=value(3)),
    "tensor of a tensor": tensor((1,), (1,), of=tensor((4,), (1,))),
    "hooks": call(
        "torch._utils._rebuild_tensor_v2",
        *(storage(), value(0), value((4,)), value((1,)), value(False), value({"hook": 1})),
    ),
    "parameter of nothing": call("torch._utils._rebuild_parameter", value(1), value(True), DICT),
    # state
    "state of a tensor": tensor((4,), (1,)) + value({"data": 1}) + BUILD,
    "state of a name": name("collections.OrderedDict") + value({"__call__": 1}) + BUILD,
    "state of a dict": DICT + value({"a": 1}) + BUILD,
    "slots": call("collections.OrderedDict") + value((None, {"__class__": 1})) + BUILD,
    "counter of text": call("collections.Counter", value({"a": "b"})),
    "counter of a list": call("collections.Counter", value([1, 2])),
    # extent
    "deep tuple": DEEP,
    "deep key": DICT + DEEP + value(1) + ITEM,
    "deep list": (LIST + b"q\x00") * 5000 + b"a" * 4999,
    "a list in itself": LIST + b"q\x00" + b"h\x00" + b"a",
    "a dict in itself": DICT + b"q\x00" + text("me") + b"h\x00" + ITEM,
    "ever more lists": tuple_of(LAUGHS),
    "a number of a thousand bits": value(2**1000),
    "a number of a million bits": b"\x8b" + struct.pack("<i", 125_000) + b"\x01" * 125_000,
    "a text of terabytes": b"\x8d" + struct.pack("<Q", 2**42),
    "bytes of terabytes": b"\x8e" + struct.pack("<Q", 2**42),
    "text of four gigabytes": b"X" + struct.pack("<I", 2**32 - 1),
    # form
    "half a character": text("x")[:1] + struct.pack("<I", 3) + b"\xed\xa0\x80",
    "no UTF-8": text("x")[:1] + struct.pack("<I", 2) + b"\xff\xfe",
    "key that is a tensor": DICT + tensor((4,), (1,)) + value(1) + ITEM,
    "key that is a list": DICT + LIST + value(1) + ITEM,
    "key without a value": DICT + MARK + text("a") + b"u",
    "set in a list": LIST + text("a") + value(1) + ITEM,
    "appended to a dict": DICT + value(1) + b"a",
    "appended to a tensor": tensor((4,), (1,)) + MARK + value(1) + b"e",
    "bytes": BYTES,
    "memo that is not there": b"h\x07",
    "nothing on the stack": REDUCE * 9,
    "marks without end": MARK * 9,
    "no mark": b"t",
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_hostile_pickles_are_refused(case: str) -> None:
    data = torch_file(program(PROGRAMS[case]), _0=bytes(16))
    with warnings.catch_warnings(action="error"), pytest.raises(TorchFileError) as refused:
        read(data)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_the_programs_are_well_formed() -> None:
    """Else they would be refused for another reason than the one that they are to show."""
    found = read(torch_file(program(tensor((2, 2), (2, 1))), _0=np.arange(4, dtype="f4").tobytes()))
    assert found["x"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    state = tuple_of(value(1), value((2,)), FLOAT, value(False), BYTES)
    assert read(torch_file(program(ARRAY, state, BUILD)))["x"].tobytes() == b"A" * 16
    assert read(torch_file(program(call("collections.Counter", value({1: 2})))))["x"] == Counter(
        [1, 1]
    )


def archive_with(*records: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of records of one name
        for record, content in records:
            archive.writestr(record, content)
    return file.getvalue()


def overlapping() -> bytes:
    """Two records in the bytes of one: a few bytes that become any number of them."""
    data = bytearray(archive_with(("a/data.pkl", program(value(1))), ("a/data/0", bytes(5000))))
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    last = data.rindex(b"PK\x01\x02", start, end)
    entry = data[last:end]
    copies = b"".join(entry.replace(b"data/0", f"data/{i}".encode()) for i in range(1, 9))
    tail = bytearray(data[end:])
    struct.pack_into("<HH", tail, 8, 10, 10)
    struct.pack_into("<I", tail, 12, end - start + len(copies))
    return bytes(data[:end]) + copies + bytes(tail)


def encrypted() -> bytes:
    data = bytearray(torch_file(program(value(1))))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    data[data.index(b"PK\x03\x04") + 6] |= 1
    return bytes(data)


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return file.getvalue()


def legacy() -> bytes:
    file = io.BytesIO()
    torch.save({"x": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1000),
    "a pickle": lambda: pickle.dumps({"x": 1}),
    "torch's format before 1.6": legacy,
    "torch's first format": tarred,
    "no pickle": lambda: archive_with(("a/data/0", b"")),
    "two pickles": lambda: archive_with(("a/data.pkl", b"N."), ("b/data.pkl", b"N.")),
    "two records of one name": lambda: archive_with(("a/data.pkl", b"N."), ("a/data.pkl", b"N.")),
    "compressed": lambda: archive_with(
        ("a/data.pkl", program(value("a" * 9999))), method=zipfile.ZIP_DEFLATED
    ),
    "compressed without end": lambda: archive_with(
        ("a/data.pkl", b"N."), ("a/data/0", bytes(10**7)), method=zipfile.ZIP_DEFLATED
    ),
    "overlapping": overlapping,
    "encrypted": encrypted,
    "of another machine": lambda: archive_with(("a/data.pkl", b"N."), ("a/byteorder", b"big")),
    "an empty pickle": lambda: archive_with(("a/data.pkl", b"")),
    "a pickle without an end": lambda: archive_with(("a/data.pkl", b"\x80\x02N")),
    "a pickle of nothing": lambda: archive_with(("a/data.pkl", b"\x80\x02.")),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_files_that_torch_would_not_write_are_refused(case: str) -> None:
    with pytest.raises(TorchFileError) as refused:
        read(ARCHIVES[case]())
    assert "\n" not in str(refused.value)


def test_each_record_is_compared_with_its_checksum() -> None:
    data = saved({"weights": torch.arange(64.0), "config": "{}"})
    read(data)
    numbers = torch.arange(64.0).numpy().tobytes()
    for at in (data.index(numbers) + 17, data.index(b"{}")):
        altered = bytearray(data)
        altered[at] ^= 1
        torch.load(io.BytesIO(altered), weights_only=True)  # torch does not notice
        with pytest.raises(DamagedError, match="CRC"):
            read(bytes(altered))
