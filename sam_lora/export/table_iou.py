"""The test table of an export: its rows as probes, and the mean IoU of a model on them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.samples import Sample, check_samples, read_samples
from sam_lora.export import parity
from sam_lora.export.onnx_export import masks_of_original_size
from sam_lora.export.parity import Probe
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import MASK_THRESHOLD, Prompts, decode
from sam_lora.results import metrics

TABLE_ROWS = 200      # of a table, at most, to measure on

Encode = Callable[[Tensor], Tensor]                                               # (1, 3, S, S) -> (1, C, h, w)
Decode = Callable[[Tensor, Prompts, Tensor | None, tuple[int, int]], np.ndarray]  # … -> (H, W) bool


def mean_iou(sam: Sam, samples: Sequence[Sample]) -> float:
    """Of a SAM's single masks, at full resolution, on the samples' own prompts."""
    encode, run = torch_encode(sam), torch_decode(sam)
    ious = []
    for probe in tqdm(table_probes(samples, sam), desc="measuring IoU", unit="image", disable=None):
        embeddings = encode(probe.frame)
        ious += [metrics.iou(run(embeddings, prompts, mask_input, probe.original_size), truth)
                 for prompts, mask_input, truth in zip(probe.prompts, probe.mask_inputs, probe.truths)]
    return float(np.mean(ious))


def torch_encode(sam: Sam) -> Encode:
    return torch.inference_mode()(sam.image_encoder)


def torch_decode(sam: Sam) -> Decode:
    """A decoder that gives the single mask."""
    @torch.inference_mode()
    def run(embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None, size: tuple[int, int]) -> np.ndarray:
        low_res, _ = decode(sam, embeddings, prompts, mask_input)
        return (masks_of_original_size(sam, low_res, size)[0, 0] > MASK_THRESHOLD).numpy()
    return run


def table_probes(samples: Sequence[Sample], sam: Sam) -> Iterator[Probe]:
    """The samples of a training table as probes, one per image with all its rows; their masks are the truths."""
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, len(samples), with_targets=False, with_masks=True)
    for batch in batches(make_loader(dataset, side, 1, 0, pin_memory=False)):
        height, width = batch.input_sizes[0].tolist()
        image = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
        prompts = [batch.prompts[i:i + 1].rows(torch.tensor([0])) for i in range(len(batch.rows))]
        yield Probe(image, parity.to_frame(image, sam), batch.original_sizes[0], prompts, [None] * len(prompts),
                    batch.masks)


def read_rows(test_csv: str | Path) -> list[Sample]:
    """Up to TABLE_ROWS rows spread evenly over a training table, each checked. Raises UserError."""
    samples = [sample for sample in read_samples(test_csv) if not sample.background]
    indices = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), TABLE_ROWS)).astype(int))
    chosen = [samples[index] for index in indices]
    check_samples(chosen, test_csv, need_labels=True)
    return chosen
