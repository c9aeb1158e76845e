"""Rows of three images with every kind of prompt, and their predictions: what the tests of results share."""

import contextlib

import torch

from sam_lora.data.samples import Sample, read_samples
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.results.predict import predict
from sam_lora.results.requests import Runtime

CPU = torch.device("cpu")
ON_CPU = Runtime(CPU)
SIDE = 256


def rows_of_three_images(test_csv) -> list[Sample]:
    """Two of the images have several rows, with different prompts; one row has a box and no label."""
    samples = read_samples(test_csv)[:3]
    more = [Sample(samples[0].image, samples[0].label, ((5.0 + i, 6.0),), (1,), None, "", "") for i in range(3)]
    box = Sample(samples[2].image, None, (), (), (4.0, 5.0, 30.0, 20.0), "", "")
    return [samples[0], samples[1], more[0], box, samples[2], *more[1:]]


def predictions(sam, samples, batch_size: int, prompts_per_image: int = 64, targets: bool = False, **more) -> list:
    """A Prediction for each row, in the rows' order."""
    dataset = PromptedImages(samples, SIDE, prompts_per_image, with_targets=targets, with_masks=True)
    loader = make_loader(dataset, SIDE, batch_size, 0, pin_memory=False)
    return sorted(predict(sam, batches(loader), contextlib.nullcontext(), **more), key=lambda found: found.row)
