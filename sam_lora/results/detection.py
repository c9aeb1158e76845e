"""How well objects were found without a prompt: average precision as COCO has it, and counts at one score.

Average precision and recall are pycocotools' (Lin et al. 2014), of masks. At a score, each object found is a hit if it
is the best unclaimed match of an object of its class with a mask IoU of HIT_IOU or more, best scores first.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam_lora.results.found import FoundObject, ScannedPhoto

HIT_IOU = 0.5
MAX_FOUND = 100      # objects of a photo that count for average precision, best first: COCO's AR100


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's AP (mean over IoU 0.50 to 0.95), AP50, AP75 and AR100; NaN without any object to find."""

    ap: float
    ap50: float
    ap75: float
    ar100: float


@dataclass(frozen=True)
class Outcome:
    """What became of one object found: `iou` with the object of its class that it matches, `hit` if it counts."""

    photo: int              # place among the photos
    found: FoundObject
    iou: float
    hit: bool
    truth: int | None       # which object of the photo it hit


@dataclass(frozen=True)
class Scores:
    """Counts at a score. `count_error`: mean over photos of |found - there|; `false_on_background`: objects found in a
    photo without any, on average, NaN if there is no such photo."""

    threshold: float
    hits: int
    false: int
    missed: int
    count_error: float
    false_on_background: float

    @property
    def precision(self) -> float:
        return self.hits / max(self.hits + self.false, 1)

    @property
    def recall(self) -> float:
        return self.hits / max(self.hits + self.missed, 1)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(2 * self.hits + self.false + self.missed, 1)


def average_precision(photos: Sequence[ScannedPhoto], classes: Sequence[str] | None = None,
                      class_agnostic: bool = False) -> AveragePrecision:
    """Of photos with truth. `classes`: of these alone; `class_agnostic`: all classes count as one."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    known = sorted({name for photo in photos for name, _ in photo.truth} | {
        thing.class_name for photo in photos for thing in photo.found}) if classes is None else list(classes)
    numbers = {name: 1 if class_agnostic else number for number, name in enumerate(known, start=1)}
    truths = [{"id": number, "image_id": image, "category_id": numbers[name], "segmentation": mask, "iscrowd": 0,
               "area": float(coco_mask.area(mask)), "bbox": coco_mask.toBbox(mask).tolist()}
              for number, (image, name, mask) in enumerate(
                  ((image, name, mask) for image, photo in enumerate(photos, start=1) for name, mask in photo.truth
                   if name in numbers), start=1)]
    found = [{"image_id": image, "category_id": numbers[thing.class_name], "segmentation": thing.mask,
              "score": thing.score} for image, photo in enumerate(photos, start=1) for thing in photo.found
             if thing.class_name in numbers]
    if not truths:
        return AveragePrecision(np.nan, np.nan, np.nan, np.nan)
    if not found:
        return AveragePrecision(0.0, 0.0, 0.0, 0.0)
    content = {"images": [{"id": image, "width": photo.size_wh[0], "height": photo.size_wh[1]}
                          for image, photo in enumerate(photos, start=1)],
               "annotations": truths, "categories": [{"id": number} for number in sorted(set(numbers.values()))]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.maxDets = [1, 10, MAX_FOUND]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return AveragePrecision(*(float(evaluation.stats[place]) for place in (0, 1, 2, 8)))


def outcomes(photos: Sequence[ScannedPhoto], class_agnostic: bool = False) -> list[Outcome]:
    """Of every object found, best score first. A lower score never changes what became of a higher one."""
    from pycocotools import mask as coco_mask
    results = []
    for place, photo in enumerate(photos):
        found = sorted(photo.found, key=lambda thing: -thing.score)
        masks = [mask for _, mask in photo.truth]
        ious = np.zeros((len(found), len(masks)))
        if found and masks:
            ious = np.asarray(coco_mask.iou([thing.mask for thing in found], masks, [0] * len(masks)))
        free = np.ones(len(masks), dtype=bool)
        for thing, row in zip(found, ious):
            same = np.array([class_agnostic or name == thing.class_name for name, _ in photo.truth], dtype=bool)
            candidates = np.where(free & same, row, -1.0)
            best = int(candidates.argmax()) if len(masks) else -1
            hit = best >= 0 and candidates[best] >= HIT_IOU
            if hit:
                free[best] = False
            iou = float(row[same].max()) if same.any() else 0.0
            results.append(Outcome(place, thing, float(candidates[best]) if hit else iou, hit, best if hit else None))
    return sorted(results, key=lambda outcome: -outcome.found.score)


def scores_at(photos: Sequence[ScannedPhoto], threshold: float, class_agnostic: bool = False) -> Scores:
    """Counts of all objects found with at least that score."""
    return scores_of(photos, outcomes(photos, class_agnostic), threshold)


def scores_of(photos: Sequence[ScannedPhoto], results: Sequence[Outcome], threshold: float) -> Scores:
    """As `scores_at`, of `outcomes` that are known."""
    kept = [outcome for outcome in results if outcome.found.score >= threshold]
    numbers = np.bincount([outcome.photo for outcome in kept], minlength=len(photos))
    there = np.array([len(photo.truth) for photo in photos])
    hits = sum(outcome.hit for outcome in kept)
    background = numbers[there == 0]
    return Scores(threshold, hits, len(kept) - hits, int(there.sum()) - hits,
                  float(np.abs(numbers - there).mean()) if len(photos) else np.nan,
                  float(background.mean()) if len(background) else np.nan)


def precision_recall(photos: Sequence[ScannedPhoto], results: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """(recalls, precisions) as the score falls; `results` best score first, as `outcomes` gives them."""
    hits = np.cumsum([outcome.hit for outcome in results])
    there = max(sum(len(photo.truth) for photo in photos), 1)
    return (hits / there).tolist(), (hits / np.arange(1, len(hits) + 1)).tolist()


def best_threshold(photos: Sequence[ScannedPhoto], fallback: float = 0.5) -> float:
    """The score with the best F1, the highest of several; halfway to the next lower score, so that it is no edge.

    `fallback`: where nothing that was found is a hit.
    """
    ordered = outcomes(photos)
    hits = np.cumsum([outcome.hit for outcome in ordered])
    if not len(hits) or not hits[-1]:
        return fallback
    scores = np.array([outcome.found.score for outcome in ordered])
    there = sum(len(photo.truth) for photo in photos)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + there)
    last = np.append(scores[1:] < scores[:-1], True)        # equal scores are found together
    best = int(np.where(last, f1, -1).argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float((scores[best] + below) / 2)
