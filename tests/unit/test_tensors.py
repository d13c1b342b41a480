"""torch's private operators on lists of tensors are as they were.

A failure means that torch has changed one; `raymimic/tensors.py` holds the function to adapt.
"""

import pytest
import torch
from torch import Tensor

from raymimic.tensors import copy_each, move_each, norm_of_each

SHAPES = [(3, 4), (5,), ()]


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def test_each_tensor_is_copied_in_place() -> None:
    targets, sources = tensors(0), tensors(1)
    places = [target.data_ptr() for target in targets]
    copy_each(targets, sources)
    torch.testing.assert_close(targets, sources, rtol=0, atol=0)
    assert [target.data_ptr() for target in targets] == places


@pytest.mark.parametrize("share", [0.0, 0.005, 1.0])
def test_each_tensor_moves_a_share_of_the_way(share: float) -> None:
    targets, sources = tensors(0), tensors(1)
    expected = [old + share * (new - old) for old, new in zip(tensors(0), sources, strict=True)]
    move_each(targets, sources, share)
    torch.testing.assert_close(targets, expected, rtol=1e-12, atol=1e-12)


def test_each_tensor_has_its_norm() -> None:
    expected = [tensor.square().sum().sqrt() for tensor in tensors(0)]
    torch.testing.assert_close(norm_of_each(tensors(0)), torch.stack(expected))
