"""`tensor_utils` against NumPy."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from raymimic.utils import tensor_utils as T

A = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
NEST = {"a": torch.from_numpy(A.copy()), "b": [A.copy(), (torch.from_numpy(A + 1.0), None)]}


def leaves(x):
    return [value for _, value in T.flatten_nested_dict_list(x)]


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (T.clone, lambda a: a),
        (T.contiguous, lambda a: a),
        (T.to_batch, lambda a: a[None]),
        (T.to_sequence, lambda a: a[:, None]),
        (lambda x: T.index_at_time(x, 1), lambda a: a[:, 1]),
        (lambda x: T.unsqueeze(x, -1), lambda a: a[..., None]),
        (lambda x: T.unsqueeze(x, 1), lambda a: a[:, None]),
        (T.flatten, lambda a: a.reshape(2, 12)),
        (lambda x: T.flatten(x, 0), np.ravel),
        (lambda x: T.join_dimensions(x, 0, 1), lambda a: a.reshape(6, 4)),
        (lambda x: T.join_dimensions(x, 1, 1), lambda a: a),
        (lambda x: T.reshape_dimensions(x, 2, 2, (2, 2)), lambda a: a.reshape(2, 3, 2, 2)),
        (lambda x: T.reshape_dimensions(x, 0, 1, (3, -1)), lambda a: a.reshape(3, 2, 4)),
        (T.to_uint8, lambda a: a.astype(np.uint8)),
        (T.to_float, lambda a: a),
        (
            lambda x: T.pad_sequence(x, (1, 2)),
            lambda a: np.pad(a, [(1, 2), (0, 0), (0, 0)], mode="edge"),
        ),
        (
            lambda x: T.pad_sequence(x, (2, 0), batched=True),
            lambda a: np.pad(a, [(0, 0), (2, 0), (0, 0)], mode="edge"),
        ),
        (
            lambda x: T.pad_sequence(x, (0, 3), True, False, 7.0),
            lambda a: np.pad(a, [(0, 0), (0, 3), (0, 0)], constant_values=7.0),
        ),
    ],
)
def test_tensors_and_arrays_are_changed_alike(function, reference):
    out = function(NEST)
    assert isinstance(out["a"], torch.Tensor)
    assert isinstance(out["b"][0], np.ndarray)
    assert isinstance(out["b"][1], tuple)
    assert out["b"][1][1] is None
    for value, array in ((out["a"], A), (out["b"][0], A), (out["b"][1][0], A + 1.0)):
        np.testing.assert_array_equal(np.asarray(value), reference(array))
        assert np.asarray(value).dtype == reference(array).dtype


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (lambda x: T.unsqueeze_expand_at(x, 5, 1), lambda a: np.repeat(a[:, None], 5, axis=1)),
        (lambda x: T.repeat_by_expand_at(x, 3, 1), lambda a: np.repeat(a, 3, axis=1)),
        (lambda x: T.repeat_rows(x, 2), lambda a: np.repeat(a, 2, axis=0)),
        (lambda x: T.named_reduce(x, "sum", 1), lambda a: a.sum(1)),
        (lambda x: T.named_reduce(x, "mean", 2), lambda a: a.mean(2)),
        (lambda x: T.named_reduce(x, "max", 0), lambda a: a.max(0)),
        (lambda x: T.named_reduce(x, "flatten", 1), lambda a: a.reshape(2, -1)),
        (
            lambda x: T.gather_sequence(x, torch.tensor([2, 0])),
            lambda a: np.stack([a[0, 2], a[1, 0]]),
        ),
        (
            lambda x: T.gather_along_dim_with_dim(x, 2, 1, torch.tensor([3, 0, 1])),
            lambda a: np.stack([a[:, 0, 3], a[:, 1, 0], a[:, 2, 1]], axis=1),
        ),
        (T.detach, lambda a: a),
        (lambda x: T.to_device(x, "cpu"), lambda a: a),
        (lambda x: T.to_one_hot(T.map_tensor(x, lambda t: t.long()), 24), lambda a: None),
    ],
)
def test_tensors_are_changed_as_numpy_does(function, reference):
    tensors = {"a": torch.from_numpy(A.copy()), "b": (torch.from_numpy(A.copy()),)}
    out = function(tensors)
    wanted = reference(A)
    wanted = np.eye(24, dtype=np.float32)[A.astype(int)] if wanted is None else wanted
    for value in (out["a"], out["b"][0]):
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-6)


def test_expand_at_takes_a_dimension_of_one():
    assert T.expand_at({"a": torch.zeros(2, 1)}, 4, 1)["a"].shape == (2, 4)
    with pytest.raises(ValueError, match="not of size 1"):
        T.expand_at(torch.zeros(2, 3), 4, 1)


def test_types_go_to_and_fro():
    tensors = T.to_tensor(NEST)
    assert all(isinstance(x, torch.Tensor) for x in leaves(tensors) if x is not None)
    arrays = T.to_numpy({"x": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)})
    assert arrays["x"].dtype == np.float32
    assert T.to_list({"x": torch.ones(2), "y": np.zeros(1)}) == {"x": [1.0, 1.0], "y": [0.0]}
    assert T.to_torch(np.ones(2, np.float64), "cpu").dtype == torch.float32
    assert T.map_ndarray([np.ones(1), None], lambda a: a + 1)[0] == 2
    copied = T.clone(NEST)
    copied["b"][0][:] = -1
    assert NEST["b"][0].max() == 23


def test_types_without_a_function_are_an_error():
    with pytest.raises(NotImplementedError, match="str"):
        T.recursive_dict_list_tuple_apply({"a": ["x"]}, {int: lambda x: x})
    ordered = T.recursive_dict_list_tuple_apply(OrderedDict(a=1), {int: lambda x: x + 1})
    assert isinstance(ordered, OrderedDict)
    assert ordered == {"a": 2}


def test_names_of_nested_values():
    nested = {"a": 1, "b": {"c": 2}, "d": [3, {"e": 4}]}
    assert T.flatten_nested_dict_list(nested) == [("a", 1), ("b_c", 2), ("d_0", 3), ("d_1_e", 4)]


def test_a_list_of_dicts_becomes_a_dict_of_lists():
    lists = T.list_of_flat_dict_to_dict_of_list([{"a": 1, "b": 2}, {"a": 3}])
    assert lists == {"a": [1, 3], "b": [2]}


def test_a_function_of_batches_is_applied_to_all_steps():
    x = {"x": torch.from_numpy(A.copy()), "y": torch.from_numpy(A + 1.0)}
    by_dict = T.time_distributed(x, lambda d: {"sum": d["x"] + d["y"]}, activation=torch.neg)
    np.testing.assert_array_equal(by_dict["sum"].numpy(), -(2 * A + 1))
    as_kwargs = T.time_distributed(x, lambda x, y, k: x * k + y, inputs_as_kwargs=True, k=2.0)
    np.testing.assert_array_equal(as_kwargs.numpy(), A * 2 + A + 1)
    as_args = T.time_distributed(list(x.values()), lambda x, y: y - x, inputs_as_args=True)
    np.testing.assert_array_equal(as_args.numpy(), np.ones_like(A))
    rows = []
    T.time_distributed(x["x"], lambda t: rows.append(t.shape) or t)
    assert rows == [(6, 4)]


def test_shapes_are_told_and_checked():
    assert T.get_shape(NEST)["b"][0] == (2, 3, 4)
    T.assert_size_at_dim(NEST, 3, 1, "no")
    with pytest.raises(AssertionError, match="other size"):
        T.assert_size_at_dim(NEST, 4, 1, "other size")
    with pytest.raises(ValueError, match="no dimensions 1 to 3"):
        T.join_dimensions(A, 1, 3)
    with pytest.raises(ValueError, match="pad_values"):
        T.pad_sequence(A, (1, 1), pad_same=False)
