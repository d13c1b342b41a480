"""robomimic's `tensor_utils`: nested dicts, lists and tuples of tensors and arrays.

`x` is a tensor or an array, or any nesting of dicts, lists and tuples of them. None stays None. The
results are nested alike.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raymimic.tensors import map_tensor, repeat_rows

__all__ = [
    "assert_size_at_dim",
    "assert_size_at_dim_single",
    "clone",
    "contiguous",
    "detach",
    "expand_at",
    "expand_at_single",
    "flatten",
    "flatten_nested_dict_list",
    "flatten_single",
    "gather_along_dim_with_dim",
    "gather_along_dim_with_dim_single",
    "gather_sequence",
    "gather_sequence_single",
    "get_shape",
    "index_at_time",
    "join_dimensions",
    "list_of_flat_dict_to_dict_of_list",
    "map_ndarray",
    "map_tensor",
    "map_tensor_ndarray",
    "named_reduce",
    "named_reduce_single",
    "pad_sequence",
    "pad_sequence_single",
    "recursive_dict_list_tuple_apply",
    "repeat_by_expand_at",
    "repeat_rows",
    "reshape_dimensions",
    "reshape_dimensions_single",
    "time_distributed",
    "to_batch",
    "to_device",
    "to_float",
    "to_list",
    "to_numpy",
    "to_one_hot",
    "to_one_hot_single",
    "to_sequence",
    "to_tensor",
    "to_torch",
    "to_uint8",
    "unsqueeze",
    "unsqueeze_expand_at",
]

Array = npt.NDArray[Any]


# ------------------------------------------------------------------------------- walking


def recursive_dict_list_tuple_apply(
    x: Any, type_func_dict: Mapping[type, Callable[[Any], Any]]
) -> Any:
    """Applies to each value the function of its type.

    Args:
        x: any nesting.
        type_func_dict: functions by type; the first type that a value is of counts.

    Raises:
        NotImplementedError: a value is of none of the types.
    """
    if isinstance(x, dict):
        kind = OrderedDict if isinstance(x, OrderedDict) else dict
        return kind((k, recursive_dict_list_tuple_apply(v, type_func_dict)) for k, v in x.items())
    if isinstance(x, list | tuple):
        kept = [recursive_dict_list_tuple_apply(v, type_func_dict) for v in x]
        return tuple(kept) if isinstance(x, tuple) else kept
    for kind_of_value, function in type_func_dict.items():
        if isinstance(x, kind_of_value):
            return function(x)
    raise NotImplementedError(f"no function is given for a value of type {type(x).__name__}")


def _itself(x: Any) -> Any:
    return x


def map_ndarray(x: Any, func: Callable[[Array], Any]) -> Any:
    """Applies a function to each array."""
    return recursive_dict_list_tuple_apply(x, {np.ndarray: func, type(None): _itself})


def map_tensor_ndarray(
    x: Any, tensor_func: Callable[[Tensor], Any], ndarray_func: Callable[[Array], Any]
) -> Any:
    """Applies one function to each tensor, and another to each array."""
    functions: dict[type, Callable[[Any], Any]] = {
        Tensor: tensor_func,
        np.ndarray: ndarray_func,
        type(None): _itself,
    }
    return recursive_dict_list_tuple_apply(x, functions)


def _map(x: Any, func: Callable[[Any], Any]) -> Any:
    """Applies a function that takes both to each tensor and array."""
    return map_tensor_ndarray(x, func, func)


# ------------------------------------------------------------------- copies, types, devices


def clone(x: Any) -> Any:
    """Copies all tensors and arrays."""
    return map_tensor_ndarray(x, lambda t: t.clone(), lambda a: a.copy())


def detach(x: Any) -> Any:
    """Detaches all tensors from their graphs."""
    return map_tensor(x, lambda t: t.detach())


def contiguous(x: Any) -> Any:
    """Makes all tensors and arrays contiguous in memory."""
    return map_tensor_ndarray(x, lambda t: t.contiguous(), np.ascontiguousarray)


def to_device(x: Any, device: torch.device | str) -> Any:
    """Moves all tensors to a device."""
    return map_tensor(x, lambda t: t.to(device))


def to_tensor(x: Any) -> Any:
    """Turns all arrays into tensors, which share their memory; tensors stay."""
    return map_tensor_ndarray(x, _itself, torch.from_numpy)


def _numpy(x: Tensor) -> Array:
    x = x.detach().cpu()
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array


def to_numpy(x: Any) -> Any:
    """Turns all tensors into arrays on the CPU; bfloat16, which NumPy lacks, into float32."""
    return map_tensor_ndarray(x, _numpy, _itself)


def to_list(x: Any) -> Any:
    """Turns all tensors and arrays into lists of numbers."""
    return map_tensor_ndarray(x, lambda t: _numpy(t).tolist(), lambda a: a.tolist())


def to_float(x: Any) -> Any:
    """Turns all tensors and arrays into float32."""
    return map_tensor_ndarray(x, lambda t: t.float(), lambda a: a.astype(np.float32))


def to_uint8(x: Any) -> Any:
    """Turns all tensors and arrays into uint8."""
    return map_tensor_ndarray(x, lambda t: t.byte(), lambda a: a.astype(np.uint8))


def to_torch(x: Any, device: torch.device | str) -> Any:
    """Turns all arrays and tensors into float32 tensors on a device."""
    return to_device(to_float(to_tensor(x)), device)


def to_one_hot_single(tensor: Tensor, num_class: int) -> Tensor:
    """Turns numbers of classes `[...]` into float32 `[..., num_class]`."""
    return F.one_hot(tensor.long(), num_class).float()


def to_one_hot(tensor: Any, num_class: int) -> Any:
    """Applies `to_one_hot_single` to all tensors."""
    return map_tensor(tensor, lambda t: to_one_hot_single(t, num_class))


# -------------------------------------------------------------------------------- dimensions


def to_batch(x: Any) -> Any:
    """Adds a first dimension of size 1."""
    return _map(x, lambda v: v[None])


def to_sequence(x: Any) -> Any:
    """Adds a dimension of time of size 1: `[B, ...]` becomes `[B, 1, ...]`."""
    return _map(x, lambda v: v[:, None])


def index_at_time(x: Any, ind: int) -> Any:
    """Takes one step of `[B, T, ...]`: `[B, ...]`."""
    return _map(x, lambda v: v[:, ind])


def unsqueeze(x: Any, dim: int) -> Any:
    """Adds a dimension of size 1 at `dim`."""
    return map_tensor_ndarray(x, lambda t: t.unsqueeze(dim), lambda a: np.expand_dims(a, dim))


def flatten_single(x: Any, begin_axis: int = 1) -> Any:
    """Joins all dimensions of a tensor or an array from `begin_axis` on."""
    return x.reshape(*x.shape[:begin_axis], -1)


def flatten(x: Any, begin_axis: int = 1) -> Any:
    """Applies `flatten_single` to all tensors and arrays."""
    return _map(x, lambda v: flatten_single(v, begin_axis))


def reshape_dimensions_single(
    x: Any, begin_axis: int, end_axis: int, target_dims: Sequence[int]
) -> Any:
    """Gives some dimensions of a tensor or an array other sizes.

    Args:
        x: the tensor or array.
        begin_axis: the first of the dimensions.
        end_axis: the last of them.
        target_dims: sizes in their place; one may be -1.

    Raises:
        ValueError: there are no such dimensions.
    """
    if not 0 <= begin_axis <= end_axis < len(x.shape):
        raise ValueError(
            f"a shape of {len(x.shape)} dimensions has no dimensions {begin_axis} to {end_axis}"
        )
    return x.reshape(*x.shape[:begin_axis], *target_dims, *x.shape[end_axis + 1 :])


def reshape_dimensions(x: Any, begin_axis: int, end_axis: int, target_dims: Sequence[int]) -> Any:
    """Applies `reshape_dimensions_single` to all tensors and arrays."""
    return _map(x, lambda v: reshape_dimensions_single(v, begin_axis, end_axis, target_dims))


def join_dimensions(x: Any, begin_axis: int, end_axis: int) -> Any:
    """Joins the dimensions from `begin_axis` to `end_axis`, that one included, into one."""
    return reshape_dimensions(x, begin_axis, end_axis, [-1])


def expand_at_single(x: Tensor, size: int, dim: int) -> Tensor:
    """Repeats a dimension of size 1, without a copy.

    Raises:
        ValueError: it is not of size 1.
    """
    if x.shape[dim] != 1:
        raise ValueError(f"dimension {dim} of {list(x.shape)} is not of size 1")
    sizes = [-1] * x.dim()
    sizes[dim] = size
    return x.expand(*sizes)


def expand_at(x: Any, size: int, dim: int) -> Any:
    """Applies `expand_at_single` to all tensors."""
    return map_tensor(x, lambda t: expand_at_single(t, size, dim))


def unsqueeze_expand_at(x: Any, size: int, dim: int) -> Any:
    """Adds a dimension at `dim`, and repeats all tensors along it, without a copy."""
    return expand_at(unsqueeze(x, dim), size, dim)


def repeat_by_expand_at(x: Any, repeats: int, dim: int) -> Any:
    """Repeats each element along a dimension, side by side."""
    return join_dimensions(unsqueeze_expand_at(x, repeats, dim + 1), dim, dim + 1)


def named_reduce_single(x: Tensor, reduction: str, dim: int) -> Tensor:
    """Reduces a dimension.

    Args:
        x: the tensor.
        reduction: `"sum"`, `"max"`, `"mean"`, or `"flatten"`, which joins all from `dim` on.
        dim: the dimension.

    Raises:
        ValueError: for another reduction.
    """
    if reduction == "flatten":
        return x.flatten(dim)
    if reduction not in ("sum", "max", "mean"):
        raise ValueError(f"reduction '{reduction}' is none of sum, max, mean and flatten")
    reduced: Tensor = getattr(torch, "amax" if reduction == "max" else reduction)(x, dim=dim)
    return reduced


def named_reduce(x: Any, reduction: str, dim: int) -> Any:
    """Applies `named_reduce_single` to all tensors."""
    return map_tensor(x, lambda t: named_reduce_single(t, reduction, dim))


# --------------------------------------------------------------------------------- sequences


def gather_along_dim_with_dim_single(
    x: Tensor, target_dim: int, source_dim: int, indices: Tensor
) -> Tensor:
    """Takes one element along a dimension, another one for each element of a second dimension.

    Args:
        x: the tensor.
        target_dim: the dimension that disappears.
        source_dim: the dimension that the indices belong to.
        indices: int64 `[x.shape[source_dim]]`, each an index along `target_dim`.

    Returns:
        The tensor without `target_dim`.
    """
    sizes = [1] * x.dim()
    sizes[source_dim] = len(indices)
    shape = list(x.shape)
    shape[target_dim] = 1
    return x.gather(target_dim, indices.reshape(sizes).expand(shape)).squeeze(target_dim)


def gather_along_dim_with_dim(x: Any, target_dim: int, source_dim: int, indices: Tensor) -> Any:
    """Applies `gather_along_dim_with_dim_single` to all tensors."""
    return map_tensor(
        x, lambda t: gather_along_dim_with_dim_single(t, target_dim, source_dim, indices)
    )


def gather_sequence_single(seq: Tensor, indices: Tensor) -> Tensor:
    """Takes one step of each sequence.

    Args:
        seq: `[B, T, ...]`.
        indices: int64 `[B]`.

    Returns:
        `[B, ...]`.
    """
    return gather_along_dim_with_dim_single(seq, 1, 0, indices)


def gather_sequence(seq: Any, indices: Tensor) -> Any:
    """Applies `gather_sequence_single` to all tensors."""
    return gather_along_dim_with_dim(seq, 1, 0, indices)


def pad_sequence_single(
    seq: Any,
    padding: Sequence[int],
    batched: bool = False,
    pad_same: bool = True,
    pad_values: float | None = None,
) -> Any:
    """Makes a sequence longer at both ends.

    Args:
        seq: tensor or array `[T, ...]`, or `[B, T, ...]` if batched.
        padding: number of steps before and after.
        batched: whether there is a batch dimension. (robomimic then repeats the first and the last
            row of the batch, in place of their first and last step.)
        pad_same: repeat the first and the last step.
        pad_values: the value of new steps otherwise.

    Raises:
        ValueError: neither is given.
    """
    if not pad_same and pad_values is None:
        raise ValueError("pad_sequence takes pad_same=True or pad_values")
    dim, parts = int(batched), [seq]
    for number, place in ((padding[0], 0), (padding[1], -1)):
        step = seq[:, [place]] if batched else seq[[place]]
        if not pad_same:
            step = step * 0 + pad_values
        if isinstance(seq, Tensor):
            new: Any = step.to(seq.dtype).repeat_interleave(max(number, 0), dim)
        else:
            new = np.repeat(step.astype(seq.dtype), max(number, 0), axis=dim)
        parts = [new, *parts] if place == 0 else [*parts, new]
    return torch.cat(parts, dim) if isinstance(seq, Tensor) else np.concatenate(parts, axis=dim)


def pad_sequence(
    seq: Any,
    padding: Sequence[int],
    batched: bool = False,
    pad_same: bool = True,
    pad_values: float | None = None,
) -> Any:
    """Applies `pad_sequence_single` to all tensors and arrays."""
    return _map(seq, lambda v: pad_sequence_single(v, padding, batched, pad_same, pad_values))


def time_distributed(
    inputs: Any,
    op: Callable[..., Any],
    activation: Callable[[Tensor], Tensor] | None = None,
    inputs_as_kwargs: bool = False,
    inputs_as_args: bool = False,
    **kwargs: Any,
) -> Any:
    """Applies a function of batches to sequences, all steps at once.

    Args:
        inputs: `[B, T, ...]`, nested.
        op: is given them as `[B * T, ...]`.
        activation: applied to its outputs.
        inputs_as_kwargs: `inputs` is a dict of its keyword arguments.
        inputs_as_args: `inputs` is a list of its arguments.
        **kwargs: further arguments of `op`.

    Returns:
        Its outputs as `[B, T, ...]`.
    """
    leading = flatten_nested_dict_list(inputs)[0][1].shape[:2]
    flat = join_dimensions(inputs, 0, 1)
    if inputs_as_kwargs:
        outputs = op(**flat, **kwargs)
    elif inputs_as_args:
        outputs = op(*flat, **kwargs)
    else:
        outputs = op(flat, **kwargs)
    if activation is not None:
        outputs = map_tensor(outputs, activation)
    return reshape_dimensions(outputs, 0, 0, leading)


# ------------------------------------------------------------------------------ shapes, lists


def assert_size_at_dim_single(x: Any, size: int, dim: int, msg: str) -> None:
    """Makes sure that a dimension of a tensor or an array has a size.

    Raises:
        AssertionError: with `msg`, it has another one.
    """
    if x.shape[dim] != size:
        raise AssertionError(msg)


def assert_size_at_dim(x: Any, size: int, dim: int, msg: str) -> None:
    """Applies `assert_size_at_dim_single` to all tensors and arrays."""
    _map(x, lambda v: assert_size_at_dim_single(v, size, dim, msg))


def get_shape(x: Any) -> Any:
    """Returns the shape in place of each tensor and array."""
    return _map(x, lambda v: v.shape)


def list_of_flat_dict_to_dict_of_list(list_of_dict: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turns a list of dicts into a dict of lists; a dict that lacks a key adds nothing to it."""
    lists: OrderedDict[str, list[Any]] = OrderedDict()
    for entry in list_of_dict:
        for key, value in entry.items():
            lists.setdefault(key, []).append(value)
    return lists


def flatten_nested_dict_list(
    d: Any, parent_key: str = "", sep: str = "_", item_key: str = ""
) -> list[tuple[str, Any]]:
    """Lists all values of a nesting.

    Args:
        d: the nesting.
        parent_key: begins each name.
        sep: between the parts of a name.
        item_key: the part of the name of `d` itself.

    Returns:
        `(name, value)`; keys and positions along the way make the name: `{"a": {"b": 1}}` gives
        `[("a_b", 1)]`.
    """
    name = f"{parent_key}{sep}{item_key}" if parent_key else item_key
    if not isinstance(d, dict | list | tuple):
        return [(name, d)]
    parts = d.items() if isinstance(d, dict) else enumerate(d)
    return [
        leaf
        for key, value in parts
        for leaf in flatten_nested_dict_list(value, name, sep, str(key))
    ]
