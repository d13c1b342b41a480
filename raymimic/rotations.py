"""Rotations as matrices, quaternions, axis and angle, Euler angles and six numbers.

Conventions are those of robomimic's `torch_utils`, which are PyTorch3D's: matrices act on columns,
quaternions begin with the real part, Euler angles turn about the axes of the turned body, and the
six numbers are a matrix's first two rows (Zhou et al., "On the Continuity of Rotation
Representations in Neural Networks" (2019), https://arxiv.org/abs/1812.07035). Angles are in
radians.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_AXES = "XYZ"


def _cross_matrix(v: Tensor) -> Tensor:
    """The matrices `[..., 3, 3]` that multiply as the cross product with vectors `[..., 3]`."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).reshape(*x.shape, 3, 3)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Turns vectors `[..., 3]`, axis times angle, into matrices `[..., 3, 3]`."""
    matrix: Tensor = torch.linalg.matrix_exp(_cross_matrix(axis_angle))
    return matrix


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Undoes `axis_angle_to_matrix`; angles are 0 to π."""
    quaternion = matrix_to_quaternion(matrix)
    vector = quaternion[..., 1:]
    sine = vector.norm(dim=-1, keepdim=True)
    angle = 2.0 * torch.atan2(sine, quaternion[..., :1])
    # angle / sine is 2 for a small angle, whose cosine is 1.
    small = sine < 1e-8
    return vector * torch.where(small, 2.0, angle / torch.where(small, 1.0, sine))


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Turns quaternions `[..., 4]`, of any length, into matrices `[..., 3, 3]`."""
    q = F.normalize(quaternions, dim=-1)
    w, v = q[..., :1, None], q[..., 1:]
    cross = _cross_matrix(v)
    identity = torch.eye(3, dtype=q.dtype, device=q.device)
    return identity + 2.0 * w * cross + 2.0 * cross @ cross


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Turns matrices `[..., 3, 3]` into unit quaternions `[..., 4]` with a real part of at least 0.

    The quaternion is an eigenvector (Bar-Itzhack, "New Method for Extracting the Quaternion from a
    Rotation Matrix", 2000), which holds for all angles. (Those of robomimic may have either sign.)
    """
    m = matrix
    skew = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    top = torch.stack([trace, *skew], -1)
    identity = torch.eye(3, dtype=m.dtype, device=m.device)
    rest = m + m.mT - trace[..., None, None] * identity
    form = torch.cat([top[..., None, :], torch.cat([top[..., 1:, None], rest], -1)], -2)
    q = torch.linalg.eigh(form).eigenvectors[..., -1]
    return torch.where(q[..., :1] < 0, -q, q)


def rotation_6d_to_matrix(d6: Tensor) -> Tensor:
    """Turns `[..., 6]` into matrices `[..., 3, 3]`, by Gram's and Schmidt's method."""
    first = F.normalize(d6[..., :3], dim=-1)
    second = d6[..., 3:]
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Takes the first two rows `[..., 6]` of matrices `[..., 3, 3]`."""
    return matrix[..., :2, :].flatten(-2)


def _axes(convention: str) -> tuple[int, int, int]:
    if (
        len(convention) != 3
        or any(letter not in _AXES for letter in convention)
        or convention[1] in (convention[0], convention[2])
    ):
        raise ValueError(
            f"'{convention}' is no order of axes: three letters of X, Y and Z, such as XYZ, of "
            "which neighbours differ"
        )
    first, second, third = map(_AXES.index, convention)
    return first, second, third


def euler_angles_to_matrix(euler_angles: Tensor, convention: str) -> Tensor:
    """Turns Euler angles `[..., 3]` into matrices `[..., 3, 3]`.

    Args:
        euler_angles: one angle for each letter.
        convention: the axes, such as `"XYZ"`.

    Raises:
        ValueError: it is no order of axes.
    """
    units = torch.eye(3, dtype=euler_angles.dtype, device=euler_angles.device)
    one, two, three = (
        axis_angle_to_matrix(angle[..., None] * units[axis])
        for axis, angle in zip(_axes(convention), euler_angles.unbind(-1), strict=True)
    )
    return one @ two @ three


def matrix_to_euler_angles(matrix: Tensor, convention: str) -> Tensor:
    """Undoes `euler_angles_to_matrix`.

    The middle angle is -π/2 to π/2; 0 to π where the first axis is the third too.

    Raises:
        ValueError: `convention` is no order of axes.
    """
    i, j, k = _axes(convention)
    # Whether the axes follow each other as X, Y, Z do.
    sign = 1.0 if (j - i) % 3 == 1 else -1.0

    def at(row: int, column: int) -> Tensor:
        return matrix[..., row, column]

    if i == k:
        n = 3 - i - j
        angles = [
            torch.atan2(at(j, i), -sign * at(n, i)),
            torch.acos(at(i, i).clamp(-1.0, 1.0)),
            torch.atan2(at(i, j), sign * at(i, n)),
        ]
    else:
        angles = [
            torch.atan2(-sign * at(j, k), at(k, k)),
            torch.asin((sign * at(i, k)).clamp(-1.0, 1.0)),
            torch.atan2(-sign * at(i, j), at(i, i)),
        ]
    return torch.stack(angles, -1)


def rot_6d_to_axis_angle(rot_6d: Tensor) -> Tensor:
    """Turns `[..., 6]` into vectors `[..., 3]`, axis times angle."""
    return matrix_to_axis_angle(rotation_6d_to_matrix(rot_6d))


def rot_6d_to_euler_angles(rot_6d: Tensor, convention: str = "XYZ") -> Tensor:
    """Turns `[..., 6]` into Euler angles `[..., 3]`."""
    return matrix_to_euler_angles(rotation_6d_to_matrix(rot_6d), convention)


def axis_angle_to_rot_6d(axis_angle: Tensor) -> Tensor:
    """Turns vectors `[..., 3]`, axis times angle, into `[..., 6]`."""
    return matrix_to_rotation_6d(axis_angle_to_matrix(axis_angle))


def euler_angles_to_rot_6d(euler_angles: Tensor, convention: str = "XYZ") -> Tensor:
    """Turns Euler angles `[..., 3]` into `[..., 6]`; robomimic takes XYZ in any case."""
    return matrix_to_rotation_6d(euler_angles_to_matrix(euler_angles, convention))
