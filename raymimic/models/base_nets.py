"""Blocks that networks are built from."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation after each hidden one.

    The parameters are those of robomimic's ``MLP``: ``_model.<i>.{weight,bias}``.

    Args:
        input_dim: size of the input.
        output_dim: size of the output.
        layer_dims: sizes of the hidden layers.
        activation: makes the module that follows each hidden layer.
        output_activation: makes the module that follows the last layer, if any.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        layer_dims: Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        output_activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        dim = input_dim
        for hidden in layer_dims:
            layers += [nn.Linear(dim, hidden), activation()]
            dim = hidden
        layers.append(nn.Linear(dim, output_dim))
        if output_activation is not None:
            layers.append(output_activation())
        self._model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., input_dim]`` to ``[..., output_dim]``."""
        y: Tensor = self._model(x)
        return y
