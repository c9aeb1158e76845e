"""From the rows of a table to masks, for validation in train.py and for both inference scripts."""

import os
from collections import deque
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
from sam_lora.model.batches import Batch, PromptedImages, batches, load_in_threads, make_loader
from sam_lora.model.encode import frame_mask, image_embeddings
from sam_lora.model.meta import Sam
from sam_lora.model.precision import autocast, choose_precision
from sam_lora.model.processes import gathered
from sam_lora.model.prompts import decode, full_size_mask, to_host, upscale_to_frame
from sam_lora.ranks import Ranks
from sam_lora.results.prompt_kinds import PromptScores, Target, score_prompts
from sam_lora.results.requests import Runtime
from sam_lora.workers import THREADS, map_in_threads

PROMPTS_PER_IMAGE = 64       # rows of one image that share a batch when it carries their true masks at full size
PROMPTS_PER_DECODE = 32      # bounds the decoder's memory
AHEAD = {"cuda": 1}          # by device: calls of the decoder that it works on while earlier masks are handed out

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


@dataclass
class _Decoded:
    """The rows of one call of the decoder. On a GPU their tensors are only under way to the host until `done`."""

    batch: Batch
    rows: slice
    masks: Iterable[Tensor]     # (H, W) bool each; on a CPU computed one by one, which takes less memory
    predicted_iou: Tensor       # (N,)
    losses: Tensor | None       # (N,)
    scores: dict[int, PromptScores]
    done: torch.cuda.Event | None

    def predictions(self) -> Iterator[Prediction]:
        if self.done:
            self.done.synchronize()
        positions = range(len(self.batch.rows))[self.rows]
        losses = [None] * len(positions) if self.losses is None else self.losses.tolist()
        for position, mask, predicted_iou, loss in zip(positions, self.masks, self.predicted_iou.tolist(), losses):
            truth = self.batch.masks[position] if self.batch.masks else None
            yield Prediction(self.batch.rows[position], mask.numpy(), predicted_iou, truth, loss,
                             self.scores.get(position))


@torch.inference_mode()
def predict(sam: Sam, batches: Iterable[Batch], autocast: AbstractContextManager, mask_loss: MaskLoss | None = None,
            kinds_seed: int | None = None) -> Iterator[Prediction]:
    """One Prediction per prompt, batch by batch. Each image is encoded once, however many prompts it has; batches may
    come with features instead of images. With `kinds_seed` each object is scored with other kinds of prompts too.

    Logits are brought to the image's own resolution first and thresholded last, as SamPredictor does. A GPU has its
    next work before the masks of the last are waited for, and handed out while it goes on.
    """
    ahead, under_way = AHEAD.get(sam.device.type, 0), deque()
    for decoded in _decoded(sam, batches, autocast, mask_loss, kinds_seed):
        under_way.append(decoded)
        if len(under_way) > ahead:
            yield from under_way.popleft().predictions()
    for decoded in under_way:
        yield from decoded.predictions()


def _decoded(sam: Sam, batches: Iterable[Batch], autocast: AbstractContextManager, mask_loss: MaskLoss | None,
             kinds_seed: int | None) -> Iterator[_Decoded]:
    """Encode each batch and decode its rows; on a GPU the host waits only to score other kinds of prompts."""
    for batch in batches:
        moved = batch.to(sam.device)
        with autocast:
            embeddings = image_embeddings(sam, moved)
        for start in range(0, len(batch.rows), PROMPTS_PER_DECODE):
            rows = slice(start, start + PROMPTS_PER_DECODE)
            with autocast:
                low_res_masks, predicted_iou = decode(sam, embeddings[moved.image_index[rows]], moved.prompts[rows])
            low_res_masks = low_res_masks.float()
            losses = None if mask_loss is None else to_host(_losses(low_res_masks, moved, rows, mask_loss))
            masks = map(to_host, _full_size(low_res_masks[:, 0], batch, rows, sam.image_encoder.img_size))
            predicted_iou, done = to_host(predicted_iou[:, 0].float()), None
            if sam.device.type == "cuda":
                masks, done = list(masks), torch.cuda.Event(blocking=True)
                torch.cuda.current_stream(sam.device).record_event(done)
            scores = {}
            if kinds_seed is not None:
                scores = _other_prompts(sam, embeddings, batch, rows, kinds_seed, autocast)
            yield _Decoded(batch, rows, masks, predicted_iou, losses, scores, done)


def _losses(low_res_masks: Tensor, batch: Batch, rows: slice, mask_loss: MaskLoss) -> Tensor:
    """(N,): the loss of each of these rows, in the model frame."""
    side = batch.targets.shape[-1]
    valid = frame_mask(batch.input_sizes, side)[batch.image_index[rows], 0].float()
    return mask_loss(upscale_to_frame(low_res_masks, side)[:, 0], batch.targets[rows].float() / 255, valid)


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


def _full_size(low_res_masks: Tensor, batch: Batch, rows: slice, side: int) -> Iterator[Tensor]:
    """Logits (N, 4h, 4w) of these rows -> the mask of each, (H, W) bool, as large as its image."""
    for logits, image in zip(low_res_masks, batch.image_index[rows].tolist()):
        yield full_size_mask(logits, side, batch.input_sizes[image].tolist(), batch.original_sizes[image])


# ---- a whole table --------------------------------------------------------------------------------------------

def predict_rows(sam: Sam, samples: Sequence[Sample], finish: Callable[[Prediction], Any], runtime: Runtime, *,
                 with_masks: bool, kinds_seed: int | None = None) -> list[Any]:
    """Predict every row and return finish(prediction) for each, in the rows' order; `finish` runs in threads.

    `with_masks`: predictions come with the truth. `kinds_seed` as for `predict`. Several processes share the rows: the
    first returns all, the others none, and what `finish` returns must be what JSON can hold. Raises UserError.
    """
    ranks, side, device = runtime.ranks, sam.image_encoder.img_size, runtime.device
    together = PROMPTS_PER_IMAGE if with_masks else len(samples)
    dataset = PromptedImages(samples, side, together, with_targets=False, with_masks=with_masks)
    precision = choose_precision(runtime.precision, device, sam, ranks)
    batch_size = runtime.batch_size or default_batch_size(side, device)
    # On a CPU, cores that each take their own images need not wait for each other, unlike cores that share a batch
    cores = torch.get_num_threads()
    threads = min(cores, batch_size) if device.type == "cpu" else 1
    order = own_batches(len(dataset), batch_size // threads, ranks)

    def numbered(prediction: Prediction) -> tuple[int, Any]:
        return prediction.row, finish(prediction)

    def predictions(batches: Iterable[Batch]) -> Iterator[Prediction]:
        return predict(sam, batches, autocast(precision, device), kinds_seed=kinds_seed)

    def of_batch(batch: Batch) -> list[tuple[int, Any]]:
        torch.set_num_threads(cores // threads)  # this thread's cores; PyTorch keeps the number per thread
        return list(map(numbered, predictions([batch])))

    loaded = _loaded(dataset, side, order, runtime)
    if threads > 1:
        finished = chain.from_iterable(map_in_threads(of_batch, loaded, threads))
    else:
        finished = map_in_threads(numbered, predictions(loaded), helpers(device))
    total = sum(len(dataset.groups[index]) for indices in order for index in indices)
    try:
        own = dict(tqdm(finished, "predicting", total, unit="mask", disable=None if ranks.first else True))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory with {batch_size} images of {side} px together; "
                        "give a smaller --batch_size") from error
    finally:
        torch.set_num_threads(cores)
    by_row = {row: result for part in gathered(list(own.items()), ranks) for row, result in part}
    return [by_row[row] for row in range(len(samples))] if ranks.first else []


def own_batches(images: int, batch_size: int, ranks: Ranks) -> list[list[int]]:
    """Numbers of the images in each batch of this process.

    Whole batches are shared out: each holds what it would if there was one process, so every mask is the very same.
    """
    every = [list(range(start, min(start + batch_size, images))) for start in range(0, images, batch_size)]
    return every[ranks.rank::ranks.world_size]


def _loaded(dataset: PromptedImages, side: int, order: Sequence[Sequence[int]], runtime: Runtime) -> Iterator[Batch]:
    """The batches in `order`. A GPU does not wait until one is loaded: without worker processes, threads load ahead."""
    on_cuda = runtime.device.type == "cuda"
    if on_cuda and runtime.num_workers == 0:
        return batches(load_in_threads(dataset, side, order, pin_memory=True, threads=helpers(runtime.device)))
    return batches(make_loader(dataset, side, 1, runtime.num_workers, pin_memory=on_cuda, batch_sampler=order))


def helpers(device: torch.device) -> int:
    """Threads that score, draw and write beside the one that predicts. A GPU leaves the cores to them."""
    return THREADS if device.type == "cpu" else max(THREADS, min(8, (os.cpu_count() or 1) // 2))


def default_batch_size(side: int, device: torch.device) -> int:
    """Images that go through the encoder together, from 1 to 32: fewer the larger the model frame."""
    pixels = 16 * 256 ** 2 if device.type == "cpu" else 4 * 1024 ** 2
    return min(32, max(1, pixels // side ** 2))
