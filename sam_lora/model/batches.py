"""Rows of a training table -> tensors, preprocessed exactly as SamPredictor does.

One item is one image with up to `prompts_per_image` of its rows, so rows that share an image share its embedding.
Images travel as uint8; the device normalises them (`encode.preprocess`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sam_lora.data.imaging import load_image, load_mask
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import Prompts


def group_rows(samples: Sequence[Sample], prompts_per_image: int) -> list[list[int]]:
    """Row indices that share an image, in table order, at most `prompts_per_image` together."""
    by_image: dict[Path, list[int]] = {}
    for index, sample in enumerate(samples):
        by_image.setdefault(sample.image, []).append(index)
    return [rows[start:start + prompts_per_image] for rows in by_image.values()
            for start in range(0, len(rows), prompts_per_image)]


@dataclass
class Item:
    """One image and its rows. `image` (3, h, w) uint8 RGB, resized to the model frame but not padded."""

    rows: list[int]
    path: Path
    image: Tensor | None               # None where only its features are needed
    input_size: tuple[int, int]        # (h, w)
    original_size: tuple[int, int]     # (H, W) of the image file
    prompts: list[Prompts]             # one each row, N = 1, in pixels of the model frame
    targets: list[Tensor]              # (h, w) uint8, 255 = wholly covered; empty without labels
    masks: list[np.ndarray | None]     # (H, W) bool at full resolution, None without a label; empty unless asked for


@dataclass
class Batch:
    """B images with N prompts. Sizes are (h, w); `image_index` (N,) says which image a prompt belongs to."""

    rows: list[int]
    images: Tensor | None              # (B, 3, S, S) uint8, padded right and bottom; None if none was decoded
    input_sizes: Tensor                # (B, 2)
    original_sizes: list[tuple[int, int]]
    image_index: Tensor                # (N,)
    prompts: Prompts
    targets: Tensor | None             # (N, S, S) uint8 in the model frame
    masks: list[np.ndarray | None]     # N full-resolution masks, or none
    paths: list[Path]                  # B image files
    decoded: list[bool]                # B: does `images` hold the picture, or black where only its features are needed
    features: Tensor | None = None     # (B, …) from `sam.encode_frozen`, instead of the images
    blocks: int = 0                    # the features enter the last so many encoder blocks

    def to(self, device: torch.device) -> "Batch":
        move = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()
                if isinstance(value, Tensor | Prompts)}
        return Batch(**{**vars(self), **move})

    def pin_memory(self) -> "Batch":
        prompts = Prompts(self.prompts.point_coords.pin_memory(), self.prompts.point_labels.pin_memory(),
                          None if self.prompts.boxes is None else self.prompts.boxes.pin_memory())
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **pinned, "prompts": prompts})


class PromptedImages(Dataset):
    """Images with their prompts. A file that turns out broken gives its UserError instead of an item.

    `sizes` (H, W) names images that are not decoded, because their features are kept.
    """

    def __init__(self, samples: Sequence[Sample], image_size: int, prompts_per_image: int,
                 with_targets: bool, with_masks: bool, sizes: Mapping[Path, tuple[int, int]] | None = None) -> None:
        self.samples = samples
        self.groups = group_rows(samples, prompts_per_image)
        self.transform = ResizeLongestSide(image_size)
        self.with_targets = with_targets
        self.with_masks = with_masks
        self.sizes = sizes or {}

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Item | UserError:
        try:
            return self._load(self.groups[index])
        except UserError as error:
            return error

    def _load(self, rows: list[int]) -> Item:
        path = self.samples[rows[0]].image
        image, original_size = None, self.sizes.get(path)
        if original_size is None:
            image, original_size = read_image(path, self.transform)
        input_size = self.transform.get_preprocess_shape(*original_size, self.transform.target_length)
        prompts, targets, masks = [], [], []
        for row in rows:
            sample = self.samples[row]
            prompts.append(self._prompts(sample, original_size))
            if sample.label is None or not (self.with_targets or self.with_masks):
                masks += [None] * self.with_masks
                continue
            mask = load_mask(sample.label)
            if mask.shape != original_size:
                raise UserError(f"{sample.label}: is {mask.shape[1]}x{mask.shape[0]} px, expected "
                                f"{original_size[1]}x{original_size[0]} px as its image {sample.image}")
            if self.with_targets:
                targets.append(torch.from_numpy(mask_to_target(mask, input_size)))
            if self.with_masks:
                masks.append(mask)
        return Item(rows, path, image, input_size, original_size, prompts, targets, masks)

    def _prompts(self, sample: Sample, original_size: tuple[int, int]) -> Prompts:
        coords = np.asarray(sample.points, dtype=np.float64).reshape(-1, 2)
        coords = torch.from_numpy(self.transform.apply_coords(coords, original_size)).float()
        boxes = None
        if sample.box is not None:
            boxes = torch.from_numpy(self.transform.apply_boxes(np.asarray([sample.box]), original_size)).float()
        return Prompts(coords[None], torch.tensor(sample.point_labels, dtype=torch.long)[None], boxes)


def read_image(path: Path, transform: ResizeLongestSide) -> tuple[Tensor, tuple[int, int]]:
    """An image file in the model frame, not padded, (3, h, w) uint8 RGB, and its own (H, W). Raises ImageError."""
    image = load_image(path)
    return torch.from_numpy(np.ascontiguousarray(transform.apply_image(image))).permute(2, 0, 1), image.shape[:2]


def pad_images(images: Sequence[Tensor | None], side: int) -> Tensor:
    """(3, h, w) each -> (B, 3, side, side) uint8, black to the right, below, and where there is no image."""
    padded = torch.zeros(len(images), 3, side, side, dtype=torch.uint8)
    for frame, image in zip(padded, images):
        if image is not None:
            frame[:, :image.shape[1], :image.shape[2]] = image
    return padded


def mask_to_target(mask: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (h, w) uint8 in the model frame; 255 where the object covers the whole pixel."""
    height, width = input_size
    shrinks = height < mask.shape[0]
    return cv2.resize(mask.astype(np.uint8) * 255, (width, height),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Collate:
    """Items -> Batch, padded right and bottom to the model frame. Passes the first UserError through."""

    def __init__(self, image_size: int) -> None:
        self.side = image_size

    def __call__(self, items: Sequence[Item | UserError]) -> Batch | UserError:
        for item in items:
            if isinstance(item, UserError):
                return item
        decoded = [item.image is not None for item in items]
        targets = None
        if items[0].targets:
            flat = [target for item in items for target in item.targets]
            targets = torch.zeros(len(flat), self.side, self.side, dtype=torch.uint8)
            for padded, target in zip(targets, flat):
                padded[:target.shape[0], :target.shape[1]] = target
        return Batch(
            rows=[row for item in items for row in item.rows],
            images=pad_images([item.image for item in items], self.side) if any(decoded) else None,
            input_sizes=torch.tensor([item.input_size for item in items]),
            original_sizes=[item.original_size for item in items],
            image_index=torch.tensor([i for i, item in enumerate(items) for _ in item.rows]),
            prompts=collate_prompts([prompts for item in items for prompts in item.prompts]),
            targets=targets,
            masks=[mask for item in items for mask in item.masks],
            paths=[item.path for item in items],
            decoded=decoded)


def collate_prompts(prompts: Sequence[Prompts]) -> Prompts:
    """Single rows -> N rows: points padded with label -1, boxes with NaN."""
    most = max(row.point_labels.shape[1] for row in prompts)
    coords = torch.zeros(len(prompts), most, 2)
    labels = torch.full((len(prompts), most), -1)
    boxes = torch.full((len(prompts), 4), torch.nan)
    for i, row in enumerate(prompts):
        count = row.point_labels.shape[1]
        coords[i, :count] = row.point_coords[0]
        labels[i, :count] = row.point_labels[0]
        if row.boxes is not None:
            boxes[i] = row.boxes[0]
    return Prompts(coords, labels, None if boxes.isnan().all() else boxes)


class ShardedBatches(Sampler):
    """Batches of indices for one of several processes, which together see what one with the whole batch would.

    The order is cut into batches of `batch_size` x `world_size`, each batch into equal runs, one a process. The last
    batch may be too small to give everybody something: then a process gets nothing, or, with `fill`, one image that
    others have too, because all must take part in every step; `share` tells which it is.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1,
                 generator: torch.Generator | None = None, fill: bool = False) -> None:
        self.count, self.batch_size, self.rank, self.world_size = count, batch_size, rank, world_size
        self.generator, self.fill = generator, fill

    def share(self, number: int) -> int:
        """How many images of batch `number` are this process's own; 0 for one that only fills up."""
        start, stop = self._run(min(self.batch_size * self.world_size,
                                    self.count - number * self.batch_size * self.world_size))
        return stop - start

    def _run(self, size: int) -> tuple[int, int]:
        return self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size

    def __len__(self) -> int:
        batches = math.ceil(self.count / (self.batch_size * self.world_size))
        return batches if self.fill else sum(self.share(number) > 0 for number in range(batches))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.count))
        if self.generator is not None:
            order = torch.randperm(self.count, generator=self.generator).tolist()
        whole = self.batch_size * self.world_size
        for start in range(0, self.count, whole):
            batch = order[start:start + whole]
            own = batch[slice(*self._run(len(batch)))]
            if own or self.fill:
                yield own or batch[:1]


def make_loader(dataset: PromptedImages, image_size: int, batch_size: int, num_workers: int, pin_memory: bool,
                generator: torch.Generator | None = None, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Batches of `batch_size` images, shuffled by `generator` if one is given, else in table order.

    With several processes each gets its share of them (`ShardedBatches`); shuffled ones are filled up.
    """
    sampler = ShardedBatches(len(dataset), batch_size, rank, world_size, generator, fill=generator is not None)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=Collate(image_size),
                      pin_memory=pin_memory, persistent_workers=num_workers > 0)


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; a broken file met on the way is raised here, in the main process."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
