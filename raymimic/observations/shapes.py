"""Shapes and modalities of observation keys."""

from collections.abc import Iterable, Mapping

from raymimic.errors import ConfigError

# robomimic's key of the instruction's embedding, which it lists under `low_dim`.
LANG_EMB_KEY = "lang_emb"


def language_keys(modalities: Mapping[str, str]) -> list[str]:
    """Returns the keys of embeddings of an instruction: those of `lang`, and robomimic's.

    Args:
        modalities: by key.
    """
    return [key for key, name in modalities.items() if name == "lang" or key == LANG_EMB_KEY]


class ObsShapes(dict[str, tuple[int, ...]]):
    """Shapes of observation keys, in the order in which networks concatenate them.

    Attributes:
        modalities: the modality of each key. A key without one is `low_dim`: networks add
            such keys themselves, the action for instance.
    """

    def __init__(
        self,
        shapes: Mapping[str, Iterable[int]] | Iterable[tuple[str, Iterable[int]]] = (),
        modalities: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__({k: tuple(shape) for k, shape in dict(shapes).items()})
        inherited = shapes.modalities if isinstance(shapes, ObsShapes) else {}
        self.modalities: dict[str, str] = {**inherited, **(modalities or {})}

    def modality(self, key: str) -> str:
        """Returns the modality of a key."""
        return self.modalities.get(key, "low_dim")


def modalities_of(group: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Turns `{modality: keys}`, as in `config.observation.modalities.obs`, inside out.

    Raises:
        ConfigError: if a key is listed under two modalities.
    """
    modalities: dict[str, str] = {}
    for modality, keys in group.items():
        for key in keys:
            if modalities.setdefault(key, modality) != modality:
                raise ConfigError(
                    f"observation key '{key}' is listed as {modalities[key]} and as {modality}: "
                    "keep one of them in observation.modalities"
                )
    return modalities
