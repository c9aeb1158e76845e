"""The small checkpoint that train.py writes: LoRA, the trained decoder, and a header that describes them.

A file holds nothing but tensors and plain types, so `torch.load(weights_only=True)` reads it:
    format, format_version
    header    model_type, image_size, base_sha256, lora {rank, alpha, dropout, targets, blocks, rslora, dora},
              train_decoder, find {classes, threshold, photo_side} or None, prompt, prompt_mix, correction_rounds
              (trained_prompts.py), epoch, metrics, args, versions
    state     name -> tensor: exactly the tensors that were trained
    training  only in last.ckpt: what --resume needs
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.model.finder import add_finder
from sam_lora.model.lora import LoraSettings, add_lora, merge_lora, trainable_parameters
from sam_lora.model.meta import Sam
from sam_lora.model.sam import load_sam
from sam_lora.model.weights import find_weights, load_plain, misfit
from sam_lora.sam_types import SAM_TYPES

FORMAT = "sam-lora"
FORMAT_VERSION = 1
HEADER_KEYS = ("model_type", "image_size", "base_sha256", "lora", "train_decoder", "prompt", "epoch", "metrics")
LORA_KEYS = ("rank", "alpha", "dropout", "targets", "blocks")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that affect the result."""
    return {name: version(name) for name in ("torch", "segment-anything", "peft", "numpy")}


def prepare_for_training(sam: Sam, lora: LoraSettings | Mapping[str, Any], train_decoder: bool,
                         find: Mapping[str, Any] | None = None) -> list[str]:
    """Add LoRA and unfreeze the mask decoder if it trains; the prompt encoder stays frozen. `find`, the entry of a
    checkpoint's header, adds a finder for its classes.

    `lora` may also be the mapping of a checkpoint's header. Returns the adapted layers' names. Training and loading
    both come through here, so that both have the same trainable tensors.
    """
    adapted = add_lora(sam, lora if isinstance(lora, LoraSettings) else LoraSettings.from_header(lora))
    sam.mask_decoder.requires_grad_(train_decoder)
    if find:
        add_finder(sam, find)
    return adapted


def trained_state(sam: Sam) -> dict[str, Tensor]:
    """A copy of every trainable tensor, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(sam).items()}


def save_checkpoint(path: Path, header: Mapping[str, Any], state: Mapping[str, Tensor],
                    training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint atomically: a run killed while it saves leaves the previous file intact."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "header": dict(header), "state": dict(state)}
    if training is not None:
        content["training"] = dict(training)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and check a checkpoint; raises UserError for anything that train.py did not write."""
    path = Path(path)
    expectation = "expected a checkpoint of train.py, e.g. checkpoints/sam_lora_final.ckpt"
    content = load_plain(path, expectation)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a LoRA checkpoint; {expectation}")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format version {content.get('format_version')}, expected {FORMAT_VERSION}; "
                        "another version of this project wrote it")
    header, state = content.get("header"), content.get("state")
    missing = [key for key in HEADER_KEYS if not isinstance(header, dict) or key not in header]
    missing += [f"lora.{key}" for key in LORA_KEYS if not missing and key not in header["lora"]]
    if missing or not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: incomplete ({', '.join(missing) or 'state'} missing); {expectation}")
    if header["model_type"] not in SAM_TYPES:
        raise UserError(f"{path}: unknown model type {header['model_type']!r}; expected {', '.join(SAM_TYPES)}")
    return content


def load_trained_state(sam: Sam, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a checkpoint's tensors into the trainable ones, which must have the same names and shapes."""
    trainable = trainable_parameters(sam)
    if problem := misfit(trainable, state):
        raise UserError(f"{path}: does not fit its own header ({problem})")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(state[name])


def load_tuned_sam(path: str | Path, base_checkpoint: str | Path | None = None, merge: bool = True,
                   image_size: int | None = None) -> tuple[Sam, dict[str, Any]]:
    """A checkpoint applied to its base: (SAM in eval mode, with LoRA merged unless `merge` is off; the header).

    `base_checkpoint` None finds the base by its type. `image_size` builds it for another side of the model frame than
    it was tuned at: nothing that was trained depends on it. Raises UserError if it is not the base that was trained on.
    """
    path = Path(path)
    content = load_checkpoint(path)
    header = content["header"]
    model_type = header["model_type"]
    base = Path(base_checkpoint) if base_checkpoint is not None else find_weights(model_type)
    sam, base_sha256 = load_sam(model_type, base, image_size or header["image_size"])
    if base_sha256 != header["base_sha256"]:
        raise UserError(f"{path}: was trained on {model_type} weights with SHA-256 {header['base_sha256'][:12]}…, "
                        f"but {base} has {base_sha256[:12]}…; name the right base with --base_checkpoint")
    prepare_for_training(sam, header["lora"], header["train_decoder"], header.get("find"))
    load_trained_state(sam, content["state"], path)
    if merge:
        merge_lora(sam)
    sam.requires_grad_(False)
    return sam.eval(), header
