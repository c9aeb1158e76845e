"""From the rows of a table to masks, for validation in train.py and for both inference scripts."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.model.batches import Batch, PromptedImages, batches, make_loader
from sam_lora.model.encode import frame_mask, image_embeddings
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import decode, full_size_mask, upscale_to_frame
from sam_lora.results.prompt_kinds import PromptScores, Target, score_prompts
from sam_lora.results.requests import Runtime
from sam_lora.workers import map_in_threads

PROMPTS_PER_IMAGE = 64       # rows of one image that share a batch when it carries their true masks at full size
PROMPTS_PER_DECODE = 32      # bounds the decoder's memory

MaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, target, valid, each (N, S, S) -> (N,)


@dataclass
class Prediction:
    """The mask predicted for one row, at its image's own resolution."""

    row: int
    mask: np.ndarray            # (H, W) bool
    predicted_iou: float        # the model's own estimate
    truth: np.ndarray | None    # (H, W) bool
    loss: float | None = None   # in the model frame; None unless a loss was asked for
    by_prompt: PromptScores | None = None   # with other prompts, if these were asked for and there is an object


@torch.inference_mode()
def predict(sam: Sam, batches: Iterable[Batch], autocast: AbstractContextManager, mask_loss: MaskLoss | None = None,
            kinds_seed: int | None = None) -> Iterator[Prediction]:
    """One Prediction per prompt, batch by batch. Each image is encoded once, however many prompts it has; batches may
    come with features instead of images. With `kinds_seed` each object is scored with other kinds of prompts too.

    Logits are brought to the image's own resolution first and thresholded last, as SamPredictor does.
    """
    side = sam.image_encoder.img_size
    for batch in batches:
        moved = batch.to(sam.device)
        with autocast:
            embeddings = image_embeddings(sam, moved)
        for start in range(0, len(batch.rows), PROMPTS_PER_DECODE):
            rows = slice(start, start + PROMPTS_PER_DECODE)
            image_index = moved.image_index[rows]
            with autocast:
                low_res_masks, predicted_iou = decode(sam, embeddings[image_index], moved.prompts[rows])
            predicted_iou = predicted_iou.float().cpu()
            losses = _losses(low_res_masks.float(), moved, rows, mask_loss)
            scores = {}
            if kinds_seed is not None:
                scores = _other_prompts(sam, embeddings, batch, rows, kinds_seed, autocast)
            for i, position in enumerate(range(len(batch.rows))[rows]):
                mask = _full_size(low_res_masks[i, 0].float(), batch, position, side)
                truth = batch.masks[position] if batch.masks else None
                yield Prediction(batch.rows[position], mask, float(predicted_iou[i, 0]), truth, losses[i],
                                 scores.get(position))


def _losses(low_res_masks: Tensor, batch: Batch, rows: slice, mask_loss: MaskLoss | None) -> list[float | None]:
    """The loss of each of these rows, in the model frame; None without `mask_loss`."""
    if mask_loss is None:
        return [None] * len(low_res_masks)
    side = batch.targets.shape[-1]
    valid = frame_mask(batch.input_sizes, side)[batch.image_index[rows], 0].float()
    return mask_loss(upscale_to_frame(low_res_masks, side)[:, 0], batch.targets[rows].float() / 255, valid).tolist()


def _other_prompts(sam: Sam, embeddings: Tensor, batch: Batch, rows: slice, seed: int,
                   autocast: AbstractContextManager) -> dict[int, PromptScores]:
    """Scores of the rows that have an object in their ground truth, by position in the batch."""
    positions = [position for position in range(len(batch.rows))[rows]
                 if batch.masks and batch.masks[position] is not None and batch.masks[position].any()]
    if not positions:
        return {}
    images = batch.image_index[positions]
    targets = [Target(batch.masks[position], tuple(batch.input_sizes[image].tolist()), batch.rows[position],
                      int((batch.prompts.point_labels[position] == 1).sum()))
               for position, image in zip(positions, images.tolist())]
    scores = score_prompts(sam, embeddings[images.to(embeddings.device)], targets, seed, autocast)
    return dict(zip(positions, scores))


def _full_size(low_res_mask: Tensor, batch: Batch, position: int, side: int) -> np.ndarray:
    """Logits (4h, 4w) of the row at that position of the batch -> its mask, (H, W) bool, as large as its image."""
    image = int(batch.image_index[position])
    return full_size_mask(low_res_mask, side, batch.input_sizes[image].tolist(), batch.original_sizes[image])


def predict_rows(sam: Sam, samples: Sequence[Sample], finish: Callable[[Prediction], Any], runtime: Runtime, *,
                 with_masks: bool, kinds_seed: int | None = None) -> list[Any]:
    """Predict every row and return finish(prediction) for each, in the rows' order; `finish` runs in threads.

    `with_masks`: predictions come with the truth. `kinds_seed` as for `predict`. Raises UserError.
    """
    side, device = sam.image_encoder.img_size, runtime.device
    together = PROMPTS_PER_IMAGE if with_masks else len(samples)
    dataset = PromptedImages(samples, side, together, with_targets=False, with_masks=with_masks)
    batch_size = runtime.batch_size or default_batch_size(side, device)
    # On a CPU, cores that each take their own images need not wait for each other, unlike cores that share a batch
    cores = torch.get_num_threads()
    threads = min(cores, batch_size) if device.type == "cpu" else 1
    loader = make_loader(dataset, side, batch_size // threads, runtime.num_workers, pin_memory=device.type == "cuda")

    def numbered(prediction: Prediction) -> tuple[int, Any]:
        return prediction.row, finish(prediction)

    def of_batch(batch: Batch) -> list[tuple[int, Any]]:
        torch.set_num_threads(cores // threads)  # this thread's cores; PyTorch keeps the number per thread
        return list(map(numbered, predict(sam, [batch], contextlib.nullcontext(), kinds_seed=kinds_seed)))

    if threads > 1:
        finished = chain.from_iterable(map_in_threads(of_batch, batches(loader), threads))
    else:
        predictions = predict(sam, batches(loader), contextlib.nullcontext(), kinds_seed=kinds_seed)
        finished = map_in_threads(numbered, predictions)
    try:
        by_row = dict(tqdm(finished, "predicting", len(samples), unit="mask", disable=None))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory with {batch_size} images of {side} px together; "
                        "give a smaller --batch_size") from error
    finally:
        torch.set_num_threads(cores)
    return [by_row[row] for row in range(len(samples))]


def default_batch_size(side: int, device: torch.device) -> int:
    """Images that go through the encoder together, from 1 to 32: fewer the larger the model frame."""
    pixels = 16 * 256 ** 2 if device.type == "cpu" else 4 * 1024 ** 2
    return min(32, max(1, pixels // side ** 2))
