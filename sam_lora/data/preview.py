"""The preview sheet: some of the crops with their masks' outlines, for a look before hours of training."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from sam_lora import contracts, drawing
from sam_lora.data import geometry, imaging
from sam_lora.data.manifest import ManifestRow

PREVIEW_CROPS = 36


class PreviewSample:
    """A random choice from a stream of manifest rows, the same in every run; every class, as far as there is room."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0).random
        self._heaps = defaultdict(list)  # class folder -> the rows with the lowest draws, highest first
        self.count = 0

    def add(self, row: ManifestRow) -> None:
        heap, draw = self._heaps[row.folder], self._random()
        self.count += 1
        if len(heap) < PREVIEW_CROPS:
            heapq.heappush(heap, (-draw, row))
        elif draw < -heap[0][0]:
            heapq.heapreplace(heap, (-draw, row))

    def rows(self) -> list[ManifestRow]:
        """First one row of each class, then a second; sorted by class."""
        ranked = [(rank, -draw, folder, row) for folder, heap in self._heaps.items()
                  for rank, (draw, row) in enumerate(sorted(heap, key=lambda entry: -entry[0]))]
        ranked.sort(key=lambda entry: entry[:3])
        return [row for *_, row in sorted(ranked[:PREVIEW_CROPS], key=lambda entry: (entry[2], entry[0]))]


def write_preview(root: Path, rows: Sequence[ManifestRow], count: int) -> None:
    """A sheet of `rows`, of `count` in all; of a whole photo or a tile the part around the object."""
    cells = []
    for row in rows:
        image, mask = imaging.load_image(root / row.image_path), imaging.load_mask(root / row.mask_path)
        name = PurePosixPath(row.mask_path).name
        name = name if len(name) <= 32 else f"{name[:17]}…{name[-14:]}"
        size_wh = mask.shape[::-1]
        window = geometry.square_box(geometry.pad_box(geometry.mask_to_xyxy(mask), 0.5, size_wh), size_wh)
        cells.append(drawing.crop_cell(geometry.crop(image, window), geometry.crop(mask, window), row.class_name, name))
    imaging.write_jpeg(root / contracts.PREVIEW_FILE, drawing.crop_sheet(
        f"{len(rows)} of {count} crops, at random; the line is the mask's outline", cells))
