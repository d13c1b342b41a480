"""The text encoder: an embedding of each instruction, by CLIP's text model, as in robomimic.

Source: robomimic/utils/lang_utils.py, which downloads `openai/clip-vit-large-patch14`. Here the
model is a local folder, in the layout of transformers; nothing is downloaded, weights are
safetensors, and no code of the folder runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from raymimic import storage
from raymimic.errors import ConfigError, pip_install, reason

# robomimic pads to so many tokens. The embedding is that of the end of the text, which the padding
# after it does not change.
_PADDED = 25


def embeddings_of(sentences: Sequence[str], folder: str) -> dict[str, list[float]]:
    """Embeds sentences.

    Args:
        sentences: instructions.
        folder: a CLIP text model, or a whole CLIP model, with its tokenizer, as `save_pretrained`
            of transformers writes them (`config.json`, `*.safetensors`, the tokenizer's files).

    Returns:
        `text_embeds` `[E]` of each sentence; E is 768 for robomimic's model.

    Raises:
        ConfigError: transformers is not installed, the folder is no such model, or a sentence is
            too long for it.
    """
    name = f"'train.text_encoder' ({folder})"
    place = storage.expanded(folder)
    if not place.is_dir():
        raise ConfigError(
            f"{name} is no folder on this machine, and nothing is downloaded: name the folder of a "
            "CLIP text model, such as a copy of openai/clip-vit-large-patch14"
        )
    if not any(place.glob("*.safetensors")):
        raise ConfigError(
            f"{name} holds no weights in the form of safetensors, and others might run code: save "
            "the model there by save_pretrained of transformers"
        )
    try:
        transformers: Any = import_module("transformers")  # untyped for the most part
    except ImportError as error:
        raise ConfigError(
            f"'train.text_encoder' needs transformers: {pip_install('lang')}"
        ) from error
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(transformers.logging):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(place), **local)
            model, loaded = transformers.CLIPTextModelWithProjection.from_pretrained(
                str(place),
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **local,
            )
    except Exception as error:  # a folder's content may lead to any
        raise ConfigError(f"{name} cannot be read: {reason(error)}") from error
    if lacking := sorted({*loaded["missing_keys"], *loaded["mismatched_keys"]}, key=str):
        raise ConfigError(f"{name} is no CLIP text model: its weights lack {lacking[0]}")
    found = {}
    for sentence in sentences:
        tokens = tokenizer(
            sentence,
            max_length=_PADDED,
            padding="max_length",
            truncation=False,
            return_tensors="pt",
        )
        length, most = tokens["input_ids"].shape[1], model.config.max_position_embeddings
        if length > most:
            raise ConfigError(
                f"the instruction '{sentence[:60]}…' is {length} tokens long, and {name} takes "
                f"{most}: shorten it"
            )
        with torch.no_grad():
            embedding = model(**tokens).text_embeds[0]
        if not torch.isfinite(embedding).all():
            raise ConfigError(
                f"{name} makes no numbers of '{sentence[:60]}': its weights are damaged"
            )
        found[sentence] = embedding.tolist()
    return found


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Scope in which transformers prints no progress bars, and no remarks on unused weights."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
