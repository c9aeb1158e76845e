"""How good a model is at every kind of prompt: points, boxes, and clicks that correct the mask so far.

A simulated user sees the true mask. Its first click is the pixel of the object farthest from the border; each further
click is the pixel farthest from the border of the thickest error, foreground where the mask is missing, background
where it spills over, given together with the earlier clicks and the low-resolution logits of the earlier mask. That
rule and the number of clicks to reach an IoU (NoC) are those of Sofiiuk et al. 2021 (RITM) and Liu et al. 2022
(SimpleClick), with a cap of contracts.MAX_CLICKS: an object that never gets there counts as that many.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sam_lora import contracts
from sam_lora.data import clicks, geometry
from sam_lora.model.batches import collate_prompts
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.prompts import Prompts, decode_all, full_size_mask, to_host
from sam_lora.results import metrics

BOX_JITTER = 0.1    # standard deviation of each side's offset, as a fraction of the box's width or height, as in SAM


@dataclass(frozen=True)
class Target:
    """One object: its true mask (H, W) bool, the (h, w) of its image in the model frame, its row in the table.

    `num_points`: how many foreground points the table has for it.
    """

    truth: np.ndarray
    input_size: tuple[int, int]
    row: int
    num_points: int


@dataclass
class PromptScores:
    """IoU of one object by kind of prompt (keys of contracts.PROMPT_KINDS but `table`) and after 1, 2, … clicks."""

    by_kind: dict[str, float] = field(default_factory=dict)
    by_clicks: list[float] = field(default_factory=list)


@torch.inference_mode()
def score_prompts(sam: Sam, embeddings: Tensor, targets: Sequence[Target], seed: int,
                  autocast: AbstractContextManager) -> list[PromptScores]:
    """Score N objects, given the image embedding of each, (N, C, h, w).

    What is drawn at random depends on the seed and the row only, so that every model gets the same prompts.
    """
    decoder = _Decoder(sam, embeddings, targets, autocast)
    scores = [PromptScores() for _ in targets]
    drawn = [np.random.default_rng((seed, target.row)) for target in targets]
    first = [[(clicks.inner_click(target.truth), 1)] for target in targets]
    others = [[(tuple(xy), 1) for xy in clicks.random_points(target.truth, 1, target.num_points or 1,
                                                                     rng)[0].tolist()]
              for target, rng in zip(targets, drawn)]
    boxes = [tuple(map(float, geometry.mask_to_xyxy(target.truth))) for target in targets]
    jittered = [geometry.move_sides(box, target.truth.shape[::-1], rng.normal(0, BOX_JITTER, 4))
                for box, target, rng in zip(boxes, targets, drawn)]
    for kind, points, frames in (("random_points", others, None), ("box", None, boxes),
                                 ("jittered_box", None, jittered), ("box_and_point", first, boxes)):
        low_res_masks, _ = decoder.decode(points, frames)
        for score, target, iou in zip(scores, targets, decoder.ious(low_res_masks[:, 0])):
            if kind != "random_points" or target.num_points:
                score.by_kind[kind] = iou
    low_res_masks, predicted_iou = decoder.decode(first, None)
    best = 1 + predicted_iou[:, 1:].argmax(dim=1)
    for score, iou in zip(scores, decoder.ious(low_res_masks[torch.arange(len(best), device=best.device), best])):
        score.by_kind["point_best_of_3"] = iou
    for score, ious in zip(scores, correct(decoder, first, low_res_masks[:, :1])):
        score.by_clicks = ious
        score.by_kind["point"] = ious[0]
    return scores


def correct(decoder: "_Decoder", made: list[list[tuple]], low_res_masks: Tensor) -> list[list[float]]:
    """IoU of each object after 1 to MAX_CLICKS clicks. `made`: the first click of each, which gave `low_res_masks`."""
    ious: list[list[float]] = [[] for _ in made]
    for number in range(1, contracts.MAX_CLICKS + 1):
        masks = decoder.masks(low_res_masks[:, 0])
        for mask, target, so_far, points in zip(masks, decoder.targets, ious, made):
            so_far.append(metrics.iou(mask, target.truth))
            click = clicks.corrective_click(mask, target.truth, [xy for xy, _ in points])
            points.append(click or points[-1])   # nothing left to correct: the same click again
        if number < contracts.MAX_CLICKS:
            low_res_masks = decoder.decode(made, None, low_res_masks)[0][:, :1]
    return ious


class _Decoder:
    """Prompts in pixels of the images -> masks of N objects."""

    def __init__(self, sam: Sam, embeddings: Tensor, targets: Sequence[Target], autocast: AbstractContextManager):
        self.sam, self.embeddings, self.targets, self.autocast = sam, embeddings, targets, autocast
        self.side = sam.image_encoder.img_size
        self.transform = ResizeLongestSide(self.side)

    def decode(self, points: Sequence[Sequence[tuple]] | None, boxes: Sequence[tuple] | None,
               mask_input: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`points`: ((x, y), label) of each object's clicks. Returns logits (N, 4, 4h, 4w) and predicted IoU (N, 4)."""
        rows = [self._prompt(target, points[i] if points else (), boxes[i] if boxes else None)
                for i, target in enumerate(self.targets)]
        prompts = collate_prompts(rows).to(self.embeddings.device)
        with self.autocast:
            low_res_masks, predicted_iou = decode_all(self.sam, self.embeddings, prompts, mask_input)
        return low_res_masks.float(), predicted_iou.float()

    def _prompt(self, target: Target, points: Sequence[tuple], box: tuple | None) -> Prompts:
        shape = target.truth.shape
        coords = self.transform.apply_coords(np.array([xy for xy, _ in points], float).reshape(-1, 2), shape)
        boxes = None if box is None else torch.from_numpy(self.transform.apply_boxes(np.array([box]), shape)).float()
        return Prompts(torch.from_numpy(coords).float()[None],
                       torch.tensor([label for _, label in points], dtype=torch.long)[None], boxes)

    def masks(self, low_res_masks: Tensor) -> list[np.ndarray]:
        """Logits (N, 4h, 4w) -> N masks, each as large as its image. The host waits for a GPU once."""
        masks = [to_host(full_size_mask(logits, self.side, target.input_size, target.truth.shape))
                 for logits, target in zip(low_res_masks, self.targets)]
        if low_res_masks.is_cuda:
            torch.cuda.current_stream(low_res_masks.device).synchronize()
        return [mask.numpy() for mask in masks]

    def ious(self, low_res_masks: Tensor) -> list[float]:
        return [metrics.iou(mask, target.truth) for mask, target in zip(self.masks(low_res_masks), self.targets)]


# ---- a whole table ----------------------------------------------------------------------------------------

def kinds_table(results: pd.DataFrame, scores: dict[int, PromptScores]) -> pd.DataFrame:
    """PROMPT_KINDS_COLUMNS of the rows that were scored, `scores` by row of `results`."""
    rows = []
    for row in sorted(scores):
        result, score = results.loc[row], scores[row]
        ious = dict(zip(contracts.CLICK_COLUMNS, score.by_clicks))
        reached = {name: clicks_to(score.by_clicks, iou) for name, iou in contracts.CLICKS_TO.items()}
        rows.append({"class_name": result["class_name"], "image": result["image"], "label": result["label"],
                     "table": float(result["iou"]), **score.by_kind, **ious, **reached})
    return pd.DataFrame(rows, columns=contracts.PROMPT_KINDS_COLUMNS).round(6)


def clicks_to(ious: Sequence[float], wanted: float) -> int:
    """The number of the first click with at least that IoU, or of the last one if none has."""
    return next((number for number, iou in enumerate(ious, start=1) if iou >= wanted), len(ious))


def summarise_kinds(table: pd.DataFrame, tuned: bool, other: pd.DataFrame | None) -> pd.DataFrame:
    """PROMPT_SUMMARY_COLUMNS: mean IoU by kind and by clicks, then clicks to an IoU.

    `tuned`: `table` is the tuned model's; `other` is the other model's, if it is known.
    """
    columns = {"tuned": table if tuned else other, "base": other if tuned else table}
    rows = []
    for name in contracts.PROMPT_KINDS_COLUMNS[3:]:
        means = {model: np.nan if content is None else pd.to_numeric(content[name], errors="coerce").mean()
                 for model, content in columns.items()}
        rows.append({"prompt": contracts.PROMPT_WORDS.get(name, name), "n": int(table[name].notna().sum()), **means})
    return pd.DataFrame(rows, columns=contracts.PROMPT_SUMMARY_COLUMNS).round(6)


def kinds_sentence(table: pd.DataFrame) -> str:
    """What the table says, in one plain sentence."""
    if table.empty:
        return "No row has a ground truth with an object in it, so other kinds of prompts were not scored."
    mean: Callable[[str], float] = table.mean(numeric_only=True).get
    first, last = contracts.CLICK_COLUMNS[0], contracts.CLICK_COLUMNS[-1]
    return (f"By kind of prompt, mean IoU on {len(table)} object{'s' * (len(table) > 1)}: the table's own "
            f"{mean('table'):.3f}, one click {mean('point'):.3f}, an exact box {mean('box'):.3f}, a box about 10 % off "
            f"{mean('jittered_box'):.3f}; corrective clicks lift the first {mean(first):.3f} to {mean(last):.3f} after "
            f"{contracts.MAX_CLICKS}, and {mean('clicks_to_0.85'):.2f} clicks reach IoU 0.85 on average "
            f"({contracts.MAX_CLICKS} = never).")
