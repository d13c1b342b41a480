"""Memory of batches: used again, but never while someone holds it."""

import pickle

import torch
from torch import Tensor

from raymimic.data.buffers import Buffers


def full(buffers: Buffers, *shape: int, value: float = 1.0) -> Tensor:
    return buffers.empty(shape, torch.float32).fill_(value)


def test_memory_that_was_let_go_is_used_again_for_as_many_bytes_or_fewer() -> None:
    buffers = Buffers()
    rows = full(buffers, 4, 3)
    place = rows.data_ptr()
    del rows
    others = [torch.empty(12) for _ in range(20)]  # take all else that was let go
    fewer = buffers.empty((2, 3), torch.float32)
    assert fewer.data_ptr() == place
    assert fewer.shape == (2, 3)
    del fewer
    bytes_of_rows = buffers.empty((48,), torch.uint8)
    assert (bytes_of_rows.data_ptr(), bytes_of_rows.dtype) == (place, torch.uint8)
    del bytes_of_rows
    assert place not in {other.data_ptr() for other in others}
    assert full(buffers, 5, 3).shape == (5, 3)


def test_memory_stays_as_long_as_a_view_of_it() -> None:
    buffers = Buffers()
    kept = [full(buffers, 4, 3)[1:2], full(buffers, 4, 3).numpy(), full(buffers, 4, 3).view(12)]
    for value in (2.0, 3.0, 4.0):
        full(buffers, 4, 3, value=value)
    assert all((x == 1).all() for x in kept)
    assert kept[0].shape == (1, 3)


def test_memory_begins_where_that_of_torch_does() -> None:
    buffers = Buffers()
    kept = [buffers.empty((n, 7), torch.float32) for n in range(1, 40)]
    assert {x.data_ptr() % 64 for x in kept} == {0}


def test_no_rows_take_no_memory() -> None:
    assert Buffers().empty((0, 3), torch.uint8).shape == (0, 3)


def test_much_memory_that_was_let_go_at_once_is_given_back() -> None:
    buffers = Buffers()
    kept = [full(buffers, 1000) for _ in range(100)]
    places = {x.data_ptr() for x in kept}
    del kept
    again = [full(buffers, 1000) for _ in range(6)]
    assert {x.data_ptr() for x in again} < places
    assert len(buffers._free) == 0


def test_a_copy_begins_without_memory() -> None:
    buffers = Buffers()
    full(buffers, 1 << 20)
    assert len(pickle.dumps(buffers)) < 1000
