"""Photos one after the other: what a search finds in each, and what a table says is there."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_lora.data.imaging import load_image
from sam_lora.data.photos import group_photos, visible_objects
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.model.finder import finder_of
from sam_lora.model.meta import Sam
from sam_lora.model.processes import gathered
from sam_lora.ranks import ALONE, Ranks
from sam_lora.results import everything
from sam_lora.results.everything import find_everything
from sam_lora.results.find import FindSettings, find_objects
from sam_lora.results.found import FoundObject, ScannedPhoto, encode_mask
from sam_lora.results.requests import Candidate, Wanted

Search = Callable[[np.ndarray], list[FoundObject]]      # (H, W, 3) uint8 RGB -> objects, best score first
SMALL_FRAME, FEWER_CLICKS, CLICKS = 256, 16, 32         # everything mode's points_per_side by the side of the frame


def threshold_of(sam: Sam, wanted: Wanted) -> float:
    """The score from which on an object counts: the one asked for, else the model's own."""
    if wanted.threshold is not None:
        return wanted.threshold
    finder = finder_of(sam)
    return everything.DEFAULT_THRESHOLD if finder is None or finder.threshold is None else finder.threshold


def search_of(candidate: Candidate, sam: Sam, wanted: Wanted, lowest_score: float,
              autocast: AbstractContextManager) -> Search:
    """How a model finds objects: by its finder; as released, in everything mode.

    Raises UserError for a tuned model without a finder and for classes that it does not know.
    """
    finder = finder_of(sam)
    if finder is not None:
        if unknown := [name for name in wanted.classes or () if name not in finder.class_names]:
            raise UserError(f"--classes {' '.join(unknown)}: not among what {candidate.name} has learned to find: "
                            f"{', '.join(finder.class_names)}")
        settings = FindSettings(lowest_score, wanted.classes, finder.photo_side)
        return partial(find_objects, sam, settings=settings, autocast=autocast)
    if candidate.tuned:
        raise UserError(f"{candidate.name}: has not learned to find objects without a prompt, because it was trained "
                        "on crops; convert with --no_crop or --tile and train again, or give prompts")
    per_side = wanted.points_per_side or (FEWER_CLICKS if sam.image_encoder.img_size <= SMALL_FRAME else CLICKS)
    return partial(find_everything, sam, points_per_side=per_side, lowest_score=lowest_score)


def scan_photos(samples: Sequence[Sample], search: Search, ranks: Ranks = ALONE) -> list[ScannedPhoto]:
    """Every photo or tile of a table, with its truth; the first of several processes returns all, others none."""
    truths = visible_objects(samples)
    photos = [(key, samples[rows[0]]) for key, rows in group_photos(samples).items()]

    def truth_of(place: int, size_wh: tuple[int, int]) -> tuple:
        shown = ((thing.class_name, thing.mask(size_wh)) for thing in truths[photos[place][0]])
        return tuple((name, encode_mask(mask)) for name, mask in shown if mask.any())
    return _scan([(sample.image, sample.image_text) for _, sample in photos], search, truth_of, ranks)


def scan_files(paths: Sequence[tuple[Path, str]], search: Search, ranks: Ranks = ALONE) -> list[ScannedPhoto]:
    """Image files, (path, name) each, without truth; as `scan_photos`."""
    return _scan(paths, search, lambda place, size_wh: None, ranks)


def _scan(paths: Sequence[tuple[Path, str]], search: Search, truth_of: Callable[[int, tuple[int, int]], tuple | None],
          ranks: Ranks) -> list[ScannedPhoto]:
    own = range(len(paths))[ranks.rank::ranks.world_size]
    scanned = []
    for place in tqdm(own, "finding objects", unit="photo", leave=False, disable=None if ranks.first else True):
        pixels = load_image(paths[place][0])
        size_wh, began = pixels.shape[1::-1], time.perf_counter()
        found = search(pixels)
        seconds = time.perf_counter() - began
        scanned.append([place, list(size_wh), [vars(thing) for thing in found], truth_of(place, size_wh), seconds])
    everyones = sorted((photo for part in gathered(scanned, ranks) for photo in part), key=lambda photo: photo[0])
    return [ScannedPhoto(*paths[place], tuple(size_wh), tuple(_found(**thing) for thing in found),
                         None if truth is None else tuple((name, mask) for name, mask in truth), seconds)
            for place, size_wh, found, truth, seconds in everyones]


def _found(box: Sequence[int], **values) -> FoundObject:
    return FoundObject(box=tuple(box), **values)
