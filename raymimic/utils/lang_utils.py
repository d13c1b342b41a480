"""robomimic's `lang_utils`: embeddings of instructions."""

import torch
from torch import Tensor

from raymimic.models.text import embeddings_of
from raymimic.observations.shapes import LANG_EMB_KEY

__all__ = ["LANG_EMB_OBS_KEY", "get_lang_emb", "get_lang_emb_shape", "tokenizer"]

LANG_EMB_OBS_KEY = LANG_EMB_KEY

# robomimic downloads this model; here it is to be the path of a folder that holds a copy of it.
tokenizer = "openai/clip-vit-large-patch14"


def get_lang_emb(lang: str | None) -> Tensor | None:
    """Embeds an instruction by the model in the folder that this module's `tokenizer` names.

    Returns:
        `[E]`, float32; None for None.

    Raises:
        ConfigError: it is no folder of such a model.
    """
    return None if lang is None else torch.tensor(embeddings_of([lang], tokenizer)[lang])


def get_lang_emb_shape() -> list[int]:
    """Returns `[E]`, which is read off an embedding."""
    return [len(embeddings_of(["dummy"], tokenizer)["dummy"])]
