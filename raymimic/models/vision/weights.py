"""Weights that were trained elsewhere: read from local files, never downloaded.

The file is untrusted, so it is read without calling anything (`raymimic.torch_file`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError
from raymimic.torch_file import TorchFileError, read_torch_file

# The files of the weights that robomimic takes from torchvision, in torch's folder of weights.
TORCHVISION_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
}

_FOLLOW: ContextVar[bool] = ContextVar("_FOLLOW", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Scope in which networks are made without pretrained weights: a checkpoint's follow.

    So a checkpoint acts on machines without those files, and chooses no file to be read.
    """
    token = _FOLLOW.set(True)
    try:
        yield
    finally:
        _FOLLOW.reset(token)


def are_needed() -> bool:
    """Whether networks that are made now start from pretrained weights, if so configured."""
    return not _FOLLOW.get()


def torchvision_file(name: str, path: str | None) -> Path:
    """Returns the file of a ResNet's weights.

    Args:
        name: such as `resnet18`.
        path: named by the config; None: torchvision's, in torch's folder of weights.

    Raises:
        ConfigError: there is none.
    """
    if path is not None:
        return Path(path).expanduser()
    file = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILES[name]
    if not file.is_file():
        raise ConfigError(
            f"backbone_kwargs.pretrained is true, but there is no file {file}, and nothing is "
            f"downloaded: put torchvision's {file.name} there, or name a file of weights in "
            "backbone_kwargs.pretrained_path"
        )
    return file


def read_weights(path: Path) -> Any:
    """Reads a file of weights onto the CPU.

    Raises:
        ConfigError: it does not exist, or holds other things than tensors, numbers and text.
    """
    try:
        with path.open("rb") as file:
            return read_torch_file(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot read the weights {path}: {reason}; correct backbone_kwargs.pretrained_path"
        ) from error
    except TorchFileError as error:
        raise ConfigError(
            f"cannot read the weights {path}: {error}; save them again by "
            "torch.save(net.state_dict(), file)"
        ) from error


@torch.no_grad()
def load_resnet(parts: Sequence[nn.Module], weights: Any, path: Path, prefix: str = "") -> None:
    """Puts a ResNet's weights into its parts.

    Args:
        parts: as `raymimic.models.vision.resnets.resnet_parts` makes them.
        weights: tensors by torchvision's names, such as `layer1.0.conv1.weight`. Those of the last
            linear layer, and any with another prefix, are not used.
        path: of the file, for messages.
        prefix: before each name.

    Raises:
        ConfigError: some are missing, or have another shape.
    """
    names = ["conv1", "bn1", None, None, "layer1", "layer2", "layer3", "layer4"]
    for name, part in zip(names, parts, strict=False):
        if name is None:
            continue
        for key, x in part.state_dict().items():
            full = f"{prefix}{name}.{key}"
            given = weights.get(full) if isinstance(weights, Mapping) else None
            if given is None and key.endswith("num_batches_tracked"):
                continue  # files from before torch 0.4.1 lack them
            if not isinstance(given, Tensor) or given.shape != x.shape:
                found = list(given.shape) if isinstance(given, Tensor) else "missing"
                raise ConfigError(
                    f"the weights {path} do not fit: '{full}' has the shape {list(x.shape)} in the "
                    f"network, in the file it is {found}; name another file in "
                    "backbone_kwargs.pretrained_path"
                )
            x.copy_(given)


def load_r3m(parts: Sequence[nn.Module], path: str | None) -> None:
    """Puts R3M's weights into a ResNet's parts, see `load_resnet`.

    Raises:
        ConfigError: there is no file, or it holds other weights.
    """
    if path is None:
        raise ConfigError(
            "backbone_class R3MConv needs weights, and nothing is downloaded: name the file of R3M "
            "(model.pt) in backbone_kwargs.pretrained_path"
        )
    file = Path(path).expanduser()
    content = read_weights(file)
    if isinstance(content, Mapping):
        content = content.get("r3m", content)
    load_resnet(parts, content, file, prefix="module.convnet.")
