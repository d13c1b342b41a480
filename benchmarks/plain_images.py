"""Behavioral cloning from images in plain torch, nothing around it: the yardstick of `images.py`.

Two cameras of 84 x 84 cropped to 76 x 76, each with an encoder of its own (a ResNet18 or IMPALA's
small network, keypoints, 64 features), a vector of 9 numbers, two hidden layers of 1024, squared
error, Adam. No seeds, no metrics, no checkpoints.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, CAMERAS, SIDE, CROP, VECTOR, ACTIONS = 64, 2, 84, 76, 9, 7
KEYPOINTS, FEATURES, HIDDEN, LEARNING_RATE = 32, 64, 1024, 1e-4


class _Block(nn.Module):
    """A block of ResNet18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


def _resnet18() -> tuple[nn.Module, int]:
    layers = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for i in range(4):
        width = 64 * 2**i
        layers += [_Block(max(width // 2, 64), width, 2 if i else 1), _Block(width, width, 1)]
    return nn.Sequential(*layers), 512


class _Residual(nn.Module):
    """A block of IMPALA's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


def _impala() -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers.append(_Residual(outputs))
    return nn.Sequential(*layers, nn.ReLU(inplace=True)), 32


class _Encoder(nn.Module):
    """Image to features: convolutions, keypoints, a linear layer."""

    places: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body, channels = {"resnet18": _resnet18, "impala": _impala}[name]()
        self.keypoints = nn.Conv2d(channels, KEYPOINTS, 1)
        self.last = nn.Linear(2 * KEYPOINTS, FEATURES)
        with torch.no_grad():
            height, width = self.body(torch.zeros(1, 3, CROP, CROP)).shape[-2:]
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        self.register_buffer("places", torch.stack([x.flatten(), y.flatten()], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.keypoints(self.body(x)).flatten(2).softmax(dim=-1)
        return F.relu(self.last((maps @ self.places).flatten(1)))


class PlainImages:
    """Networks, optimizer and random transitions.

    Args:
        encoder: `"resnet18"` or `"impala"`.
        transitions: rows of data.
        device: where all of it lies.
    """

    def __init__(self, encoder: str, transitions: int, device: torch.device) -> None:
        self.encoders = nn.ModuleList(_Encoder(encoder) for _ in range(CAMERAS)).to(device)
        self.actor = nn.Sequential(
            nn.Linear(CAMERAS * FEATURES + VECTOR, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, ACTIONS),
            nn.Tanh(),
        ).to(device)
        self.parameters = [*self.encoders.parameters(), *self.actor.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        shape = (transitions, SIDE, SIDE, 3)
        self.images = [
            torch.randint(256, shape, dtype=torch.uint8, device=device) for _ in range(CAMERAS)
        ]
        self.vectors = torch.randn(transitions, VECTOR, device=device)
        self.actions = torch.rand(transitions, ACTIONS, device=device) * 2 - 1
        self.device = device

    def step(self) -> None:
        """One gradient step on a random batch."""
        rows = torch.randint(len(self.actions), (BATCH,), device=self.device)
        features = []
        for images, encoder in zip(self.images, self.encoders, strict=True):
            features.append(encoder(self._crop(images[rows]).permute(0, 3, 1, 2) / 255))
        features.append(self.vectors[rows])
        loss = F.mse_loss(self.actor(torch.cat(features, dim=1)), self.actions[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _crop(self, images: Tensor) -> Tensor:
        """A window of each image `[B, H, W, 3]` at a random place of its own."""
        places = torch.randint(SIDE - CROP, (BATCH, 2)).tolist()
        return torch.stack(
            [x[i : i + CROP, j : j + CROP] for x, (i, j) in zip(images, places, strict=True)]
        )


def run_plain(plain: PlainImages, steps: int) -> float:
    """Takes so many steps.

    Returns:
        Seconds, of which none is owed to the device at the end.
    """
    start = time.perf_counter()
    for _ in range(steps):
        plain.step()
    if plain.device.type == "cuda":
        torch.cuda.synchronize(plain.device)
    return time.perf_counter() - start
