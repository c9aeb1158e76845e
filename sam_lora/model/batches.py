"""Rows of a training table -> tensors, preprocessed exactly as SamPredictor does.

One item is one image with up to `prompts_per_image` of its rows, so rows that share an image share its embedding.
Images travel as uint8; the device normalises them (`encode.preprocess`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sam_lora.data.imaging import load_image, load_mask
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.model.finder_targets import Cells, Scene, Scenes, stack_cells
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import Prompts
from sam_lora.workers import map_in_threads


def group_rows(samples: Sequence[Sample], prompts_per_image: int) -> list[list[int]]:
    """Row indices that share an image, in table order, at most `prompts_per_image` together."""
    by_image: dict[Path, list[int]] = {}
    for index, sample in enumerate(samples):
        by_image.setdefault(sample.image, []).append(index)
    return [rows[start:start + prompts_per_image] for rows in by_image.values()
            for start in range(0, len(rows), prompts_per_image)]


@dataclass
class Item:
    """One image, or its features, and its rows. Nothing is padded."""

    rows: list[int]
    path: Path
    image: Tensor | None               # (3, h, w) uint8 RGB in the model frame; None where features take its place
    features: Tensor | None            # of the encoder's frozen part, where they are kept
    input_size: tuple[int, int]        # (h, w) in the model frame
    original_size: tuple[int, int]     # (H, W) of the image file
    prompts: list[Prompts]             # one for each row, N = 1, in pixels of the model frame
    targets: list[Tensor]              # (h, w) uint8, 255 = wholly covered; empty without labels
    masks: list[np.ndarray | None]     # (H, W) bool at full resolution, None without a label; empty unless asked for
    correction_draws: list[np.ndarray] = field(default_factory=list)  # for each row (rounds,) in 0 to 1, or none
    scene: Scene | None = None         # all objects of the photo, for the finder
    background: bool = False           # a photo without objects: its one row is no mask to learn


@dataclass
class Batch:
    """B images with N prompts. Sizes are (h, w); `image_index` (N,) says which image a prompt belongs to."""

    rows: list[int]
    images: Tensor | None              # (D, 3, S, S) uint8, padded right and bottom; None if no image was decoded
    decoded: list[int]                 # D: which of the B images `images` holds, all but those whose features are kept
    input_sizes: Tensor                # (B, 2)
    original_sizes: list[tuple[int, int]]
    image_index: Tensor                # (N,)
    prompts: Prompts
    targets: Tensor | None             # (N, S, S) uint8 in the model frame
    masks: list[np.ndarray | None]     # N full-resolution masks, or none
    paths: list[Path]                  # B image files
    correction_draws: Tensor | None = None  # (N, rounds) in 0 to 1: which wrong pixel each corrective click takes
    features: Tensor | None = None     # (B, …) from `encode_frozen`, zero where the image was decoded instead
    cells: Cells | None = None         # (B, …) what the finder is to say
    counted: Tensor | None = None      # (N,) 1, or 0 for the row of a photo without objects; None if all count
    blocks: int = 0                    # how many of the encoder's last blocks the features still have to pass

    def to(self, device: torch.device) -> "Batch":
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()
                 if isinstance(value, Tensor | Prompts | Cells)}
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        boxes = self.prompts.boxes
        prompts = replace(self.prompts, point_coords=self.prompts.point_coords.pin_memory(),
                          point_labels=self.prompts.point_labels.pin_memory(),
                          boxes=None if boxes is None else boxes.pin_memory())
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        cells = None if self.cells is None else self.cells.pin_memory()
        return replace(self, **pinned, prompts=prompts, cells=cells)


class PromptedImages(Dataset):
    """Images with their prompts. A file that turns out broken gives its UserError instead of an item.

    A key is (epoch, index) or an index alone, which is epoch 0. `read_features(path)` gives the kept features of an
    image and its (H, W), or None; such an image is not decoded. `augment(item, epoch)` has the last word on an item.
    """

    def __init__(self, samples: Sequence[Sample], image_size: int, prompts_per_image: int,
                 with_targets: bool, with_masks: bool,
                 read_features: Callable[[Path], tuple[Tensor, tuple[int, int]] | None] | None = None,
                 augment: Callable[[Item, int], Item] | None = None, scenes: Scenes | None = None) -> None:
        self.samples = samples
        self.groups = group_rows(samples, prompts_per_image)
        self.transform = ResizeLongestSide(image_size)
        self.with_targets = with_targets
        self.with_masks = with_masks
        self.read_features = read_features
        self.augment = augment
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: int | tuple[int, int]) -> Item | UserError:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            item = self._load(self.groups[index])
        except UserError as error:
            return error
        return self.augment(item, epoch) if self.augment else item

    def _load(self, rows: list[int]) -> Item:
        path = self.samples[rows[0]].image
        image, kept = None, self.read_features(path) if self.read_features else None
        if kept is None:
            image, original_size = read_image(path, self.transform)
            features = None
        else:
            features, original_size = kept
        input_size = self.transform.get_preprocess_shape(*original_size, self.transform.target_length)
        prompts, targets, masks = [], [], []
        for row in rows:
            sample = self.samples[row]
            prompts.append(self._background_prompt(input_size) if sample.background
                           else self._prompts(sample, original_size))
            if sample.background and self.with_targets:
                targets.append(torch.zeros(input_size, dtype=torch.uint8))
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
        scene = self.scenes.of(self.samples[rows[0]], original_size, input_size) if self.scenes else None
        background = self.with_targets and self.samples[rows[0]].background
        return Item(rows, path, image, features, input_size, original_size, prompts, targets, masks, scene=scene,
                    background=background)

    @staticmethod
    def _background_prompt(input_size: tuple[int, int]) -> Prompts:
        """A click in the middle, because the decoder wants one."""
        middle = torch.tensor(input_size[::-1]).float() / 2
        return Prompts(middle[None, None], torch.ones(1, 1, dtype=torch.long))

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
    height, width = transform.get_preprocess_shape(*image.shape[:2], transform.target_length)
    # what `transform.apply_image` does, without torchvision's own steps around it
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1), image.shape[:2]


def pad_images(images: Sequence[Tensor], side: int) -> Tensor:
    """(3, h, w) each -> (B, 3, side, side) uint8, black to the right and below."""
    padded = torch.zeros(len(images), 3, side, side, dtype=torch.uint8)
    for frame, image in zip(padded, images):
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
        decoded = [place for place, item in enumerate(items) if item.image is not None]
        targets = None
        if items[0].targets:
            unpadded = [target for item in items for target in item.targets]
            targets = torch.zeros(len(unpadded), self.side, self.side, dtype=torch.uint8)
            for padded, target in zip(targets, unpadded):
                padded[:target.shape[0], :target.shape[1]] = target
        return Batch(
            rows=[row for item in items for row in item.rows],
            images=pad_images([items[place].image for place in decoded], self.side) if decoded else None,
            decoded=decoded,
            input_sizes=torch.tensor([item.input_size for item in items]),
            original_sizes=[item.original_size for item in items],
            image_index=torch.tensor([place for place, item in enumerate(items) for _ in item.rows]),
            prompts=collate_prompts([prompts for item in items for prompts in item.prompts]),
            targets=targets,
            masks=[mask for item in items for mask in item.masks],
            paths=[item.path for item in items],
            correction_draws=collate_draws([draws for item in items for draws in item.correction_draws]),
            features=collate_features([item.features for item in items]),
            counted=collate_counted(items),
            cells=collate_cells([item.scene for item in items], self.side))


def collate_prompts(prompts: Sequence[Prompts]) -> Prompts:
    """Single rows -> N rows: points padded with label -1, boxes with NaN."""
    counts = [row.point_labels.shape[1] for row in prompts]
    coords = torch.zeros(len(prompts), max(counts), 2)
    labels = torch.full((len(prompts), max(counts)), -1)
    boxes = torch.full((len(prompts), 4), torch.nan)
    for i, (row, count) in enumerate(zip(prompts, counts)):
        coords[i, :count] = row.point_coords[0]
        labels[i, :count] = row.point_labels[0]
        if row.boxes is not None:
            boxes[i] = row.boxes[0]
    return Prompts(coords, labels, None if boxes.isnan().all() else boxes)


def collate_draws(draws: Sequence[np.ndarray]) -> Tensor | None:
    """(rounds,) of each row -> (N, rounds); None without corrective rounds."""
    return torch.from_numpy(np.stack(draws)).float() if draws else None


def collate_counted(items: Sequence[Item]) -> Tensor | None:
    """(N,) 0 for the rows of photos without objects, else 1; None if there is no such photo."""
    if not any(item.background for item in items):
        return None
    return torch.tensor([0.0 if item.background else 1.0 for item in items for _ in item.rows])


def collate_cells(scenes: Sequence[Scene | None], side: int) -> Cells | None:
    """What the finder is to say of B images, None without scenes."""
    return None if scenes[0] is None else stack_cells([scene.cells(side) for scene in scenes])


def collate_features(features: Sequence[Tensor | None]) -> Tensor | None:
    """Features of B images in one tensor, zero where there are none; None if there are none at all."""
    kept = next((one for one in features if one is not None), None)
    if kept is None:
        return None
    return torch.stack([torch.zeros_like(kept) if one is None else one for one in features])


def make_loader(dataset: PromptedImages, image_size: int, batch_size: int, num_workers: int, pin_memory: bool,
                batch_sampler: Sampler | Sequence[Sequence[int]] | None = None) -> DataLoader:
    """Batches of `batch_size` images in table order, or those that `batch_sampler` lists."""
    in_batches = {"batch_size": batch_size} if batch_sampler is None else {"batch_sampler": batch_sampler}
    return DataLoader(dataset, **in_batches, num_workers=num_workers, collate_fn=Collate(image_size),
                      pin_memory=pin_memory, persistent_workers=num_workers > 0)


def load_in_threads(dataset: PromptedImages, image_size: int, order: Iterable[Sequence[int]], pin_memory: bool,
                    threads: int) -> Iterator[Batch | UserError]:
    """The batches that `order` lists, a few ahead: for runs too short to start processes for. Decoding an image and
    resizing it release Python's lock."""
    collate = Collate(image_size)

    def load(indices: Sequence[int]) -> Batch | UserError:
        batch = collate([dataset[index] for index in indices])
        return batch.pin_memory() if pin_memory and isinstance(batch, Batch) else batch

    return map_in_threads(load, order, threads)


def batches(loader: Iterable[Batch | UserError]) -> Iterator[Batch]:
    """The loader's batches. A broken file that a worker met is raised here, in the main process."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
