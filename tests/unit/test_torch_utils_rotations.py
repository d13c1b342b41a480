"""Rotations against SciPy's."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from raymimic.utils import torch_utils as T

ORDERS = ["".join(o) for o in itertools.product("XYZ", repeat=3) if o[0] != o[1] != o[2]]
# Small, usual and half turns.
VECTORS = np.concatenate(
    [
        np.random.default_rng(0).normal(size=(50, 3)),
        [[0.0, 0.0, 0.0], [1e-9, 0.0, 0.0], [np.pi, 0.0, 0.0], [0.0, -3.0, 1e-7]],
    ]
)


def turns() -> Rotation:
    return Rotation.from_rotvec(VECTORS)


def assert_same_turn(matrix: torch.Tensor, other: Rotation) -> None:
    np.testing.assert_allclose(matrix.numpy(), other.as_matrix(), atol=1e-12)


def test_axis_and_angle():
    vectors = torch.from_numpy(VECTORS)
    assert_same_turn(T.axis_angle_to_matrix(vectors), turns())
    back = T.matrix_to_axis_angle(torch.from_numpy(turns().as_matrix()))
    assert_same_turn(torch.from_numpy(Rotation.from_rotvec(back.numpy()).as_matrix()), turns())
    assert back.norm(dim=-1).max() <= np.pi + 1e-9


def test_quaternions():
    quaternions = torch.from_numpy(turns().as_quat(scalar_first=True))
    assert_same_turn(T.quaternion_to_matrix(2.0 * quaternions), turns())
    back = T.matrix_to_quaternion(torch.from_numpy(turns().as_matrix()))
    wanted = torch.where(quaternions[:, :1] < 0, -quaternions, quaternions)
    dots = (back * wanted).sum(-1).abs()  # half turns have either sign
    torch.testing.assert_close(dots, torch.ones_like(dots))


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles(order: str):
    angles = np.random.default_rng(1).uniform(-1.4, 1.4, size=(20, 3))
    turned = Rotation.from_euler(order, angles)
    matrix = T.euler_angles_to_matrix(torch.from_numpy(angles), order)
    assert_same_turn(matrix, turned)
    again = T.matrix_to_euler_angles(matrix, order)
    assert_same_turn(T.euler_angles_to_matrix(again, order), turned)
    if len(set(order)) == 3:
        np.testing.assert_allclose(again.numpy(), angles, atol=1e-12)
    six = T.euler_angles_to_rot_6d(torch.from_numpy(angles), order)
    assert_same_turn(T.euler_angles_to_matrix(T.rot_6d_to_euler_angles(six, order), order), turned)


def test_six_numbers():
    matrix = torch.from_numpy(turns().as_matrix())
    six = T.matrix_to_rotation_6d(matrix)
    np.testing.assert_array_equal(six.numpy(), turns().as_matrix()[:, :2].reshape(-1, 6))
    assert_same_turn(T.rotation_6d_to_matrix(six), turns())
    # Two rows of any length, not quite at right angles.
    bent = six.clone()
    bent[:, :3] *= 3.0
    bent[:, 3:] = 0.5 * bent[:, 3:] + 0.1 * bent[:, :3]
    assert_same_turn(T.rotation_6d_to_matrix(bent), turns())
    vectors = torch.from_numpy(VECTORS)
    assert_same_turn(
        T.axis_angle_to_matrix(T.rot_6d_to_axis_angle(T.axis_angle_to_rot_6d(vectors))), turns()
    )


@pytest.mark.parametrize("order", ["XXY", "xyz", "XY", "XYA"])
def test_an_order_that_is_none(order: str):
    with pytest.raises(ValueError, match="no order of axes"):
        T.euler_angles_to_matrix(torch.zeros(3), order)
