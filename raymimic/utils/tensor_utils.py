"""robomimic's `tensor_utils`: nested dicts, lists and tuples of tensors."""

from raymimic.tensors import map_tensor, repeat_rows

__all__ = ["map_tensor", "repeat_rows"]
