"""Pictures that explain a result: panels, sheets, one picture's overlay, the training curves, base against tuned.

Pictures are (H, W, 3) uint8 RGB. They are drawn with OpenCV, text with Pillow; only the two plots need matplotlib, and
that never opens a window. Three colours of Okabe and Ito's palette, apart in hue and in brightness,
tell right, too much and missed apart for colour-blind people and on a grey printout.
"""

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sam_lora.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

RIGHT, TOO_MUCH, MISSED = (86, 180, 233), (213, 94, 0), (240, 228, 66)  # sky blue, vermilion, yellow
LEGEND = ((RIGHT, "right"), (TOO_MUCH, "too much"), (MISSED, "missed"))
OBJECT_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
                  (204, 121, 167))  # Okabe and Ito's, without black
BACKGROUND, INK, GREY = (250, 250, 250), (20, 20, 20), (105, 105, 105)
OPACITY, DIM = 0.6, 0.8  # of the colours; of the grey picture under them

PANEL_AREA, PANEL_LONGEST = 360 * 300, 620       # of one tile, pixels
OVERLAY_AREA, OVERLAY_LONGEST = 900 * 700, 1600
NARROWEST_TILE, NARROWEST_PANEL = 150, 720       # room for the words above
GAP = 8
SHEET_TILE, SHEET_COLUMNS = (168, 200), 3        # most (w, h)
SHEET_CELL = 3 * SHEET_TILE[0] + 2 * GAP         # width
CROP_TILE, CROP_COLUMNS = (200, 150), 6          # (w, h)
SHEET_AREA = 168 * 132
CHANGE_CELL, CHANGE_HEIGHT = 968, 280            # width; most height of a tile
CHANGE_AREA = 236 * 177


@dataclass(frozen=True)
class Example:
    """One image with its prompt and masks; coordinates are xy pixels of the image."""

    image: np.ndarray                  # (H, W, 3) uint8 RGB
    points: Sequence[Sequence[float]]
    point_labels: Sequence[int]        # 1 foreground, 0 background
    box: Sequence[float] | None        # x0, y0, x1, y1
    predicted: np.ndarray              # (H, W) bool
    truth: np.ndarray | None           # (H, W) bool


# ---- whole pictures ---------------------------------------------------------------------------------------

def panel(example: Example, heading: str, subheading: str) -> np.ndarray:
    """Image with its prompt, prediction and ground truth (where there is one) side by side, with a legend.

    Very wide ones below each other.
    """
    tiles = _tiles(_Scaled(example, _scale_to_area(example, PANEL_AREA, PANEL_LONGEST)))
    titles = ("image and prompt", "prediction", "ground truth")
    titled = [_stack([_text(title, max(NARROWEST_TILE, tile.shape[1]), 15, GREY), tile])
              for title, tile in zip(titles, tiles)]
    row = (_stack if _is_wide(example) else _beside)(titled)
    width = max(row.shape[1], NARROWEST_PANEL)
    parts = [_text(heading, width, 17, INK), _text(subheading, width, 13, GREY), row]
    if example.truth is not None:
        parts.append(_legend(width))
    return _framed(_stack(parts))


def contact_sheet(title: str, sections: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
    """Many examples on one picture. `sections`: (heading, what `sheet_cell` made)."""
    width = SHEET_COLUMNS * SHEET_CELL + (SHEET_COLUMNS - 1) * 3 * GAP
    parts = [_text(title, width, 22, INK),
             _legend(width, "each cell: image and prompt | prediction | ground truth      ")]
    for heading, cells in sections:
        parts.append(_text(heading, width, 18, INK))
        for start in range(0, len(cells), SHEET_COLUMNS):
            parts += [_beside(cells[start:start + SHEET_COLUMNS], 3 * GAP), _blank(GAP, width)]
    return _framed(_stack(parts))


def sheet_cell(example: Example, caption: str) -> np.ndarray:
    """One example of a contact sheet: its tiles, small, under one line of text; very wide ones below each other."""
    height, width = example.image.shape[:2]
    if _is_wide(example):
        tiles = _tiles(_Scaled(example, min(_scale_to_area(example, SHEET_AREA, SHEET_CELL), SHEET_CELL / width)))
        return _stack([_text(caption, SHEET_CELL, 14, INK), *(_stack([tile, _blank(3, 1)]) for tile in tiles)])
    scale = min(_scale_to_area(example, SHEET_AREA, SHEET_CELL), SHEET_TILE[0] / width, SHEET_TILE[1] / height)
    tiles = _tiles(_Scaled(example, scale))
    return _stack([_text(caption, SHEET_CELL, 14, INK), _beside([_widened(tile, SHEET_TILE[0]) for tile in tiles])])


def change_sheet(title: str, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Objects that one model sees otherwise than the other. `cells`: what `change_cell` made."""
    return _framed(_stack([_text(title, CHANGE_CELL, 22, INK), _legend(CHANGE_CELL),
                           *(_stack([_blank(GAP, CHANGE_CELL), cell]) for cell in cells)]))


def change_cell(base: Example, tuned: Example, heading: str, subheading: str) -> np.ndarray:
    """One object of a change sheet: image and prompt, what either model predicts, ground truth; each under its name.

    Both have the same image and truth. Of very wide pictures two stand side by side.
    """
    height, width = base.image.shape[:2]
    columns = 2 if _is_wide(base) else 4
    tile_width = (CHANGE_CELL - (columns - 1) * GAP) // columns
    scale = min(_scale_to_area(base, CHANGE_AREA * 4 // columns, CHANGE_CELL), CHANGE_HEIGHT / height,
                tile_width / width)
    prompt, before, truth = _tiles(_Scaled(base, scale))
    after = _tiles(_Scaled(tuned, scale))[1]
    titled = [_stack([_text(title, tile_width, 13, GREY), tile]) for title, tile in
              (("image and prompt", prompt), ("base", before), ("tuned", after), ("ground truth", truth))]
    return _stack([_text(heading, CHANGE_CELL, 15, INK), _text(subheading, CHANGE_CELL, 12, GREY),
                   *(_beside(titled[start:start + columns]) for start in range(0, 4, columns))])


def crop_sheet(title: str, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Many crops on one picture. `cells`: what `crop_cell` made."""
    width = CROP_COLUMNS * CROP_TILE[0] + (CROP_COLUMNS - 1) * GAP
    parts = [_text(title, width, 18, INK)]
    for start in range(0, len(cells), CROP_COLUMNS):
        parts += [_beside(cells[start:start + CROP_COLUMNS]), _blank(GAP, width)]
    return _framed(_stack(parts))


def crop_cell(image: np.ndarray, mask: np.ndarray, heading: str, subheading: str) -> np.ndarray:
    """One crop, (H, W, 3) uint8 RGB, with the outline of its mask, (H, W) bool, under two lines of text."""
    height, width = mask.shape
    scaled = _Scaled(Example(image, (), (), None, mask, None), min(CROP_TILE[0] / width, CROP_TILE[1] / height))
    coverage = scaled.coverage(mask)
    shown = coverage > 0.5 * coverage.max()  # half of what there is: a crack is thinner than a pixel here
    around = cv2.dilate(shown.astype(np.uint8), np.ones((5, 5), np.uint8))  # so that the line does not hide a thin one
    contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture = scaled.image.copy()
    for colour, thickness in ((INK, 3), (MISSED, 1)):  # seen on bright and on dark
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return _stack([_text(heading, CROP_TILE[0], 14, INK), _text(subheading, CROP_TILE[0], 10, GREY),
                   _widened(picture, CROP_TILE[0])])


def overlay(example: Example) -> np.ndarray:
    """The image with its prompt and the predicted mask on it, small images enlarged and large ones reduced."""
    scaled = _Scaled(example, _scale_to_area(example, OVERLAY_AREA, OVERLAY_LONGEST))
    return scaled.with_prompt(scaled.tinted([(example.predicted, RIGHT)], outline=example.predicted, grey=False))


def numbered_overlay(examples: Iterable[Example]) -> np.ndarray:
    """One image with the prompts and predicted masks of several objects, numbered from 1 in different colours.

    The `examples` share their image; each is drawn before the next is asked for.
    """
    picture, chips = None, []
    for number, example in enumerate(examples, start=1):
        scaled = _Scaled(example, _scale_to_area(example, OVERLAY_AREA, OVERLAY_LONGEST), picture)
        colour = OBJECT_COLOURS[(number - 1) % len(OBJECT_COLOURS)]
        tinted = scaled.tinted([(example.predicted, colour)], outline=example.predicted, grey=False)
        picture = scaled.with_prompt(tinted)
        chips.append((scaled.middle(), _chip(str(number), colour)))
    for (x, y), chip in chips:  # last, so that no mask covers one
        height, width = np.minimum(chip.shape[:2], picture.shape[:2]).tolist()
        left = min(max(x - width // 2, 0), picture.shape[1] - width)
        top = min(max(y - height // 2, 0), picture.shape[0] - height)
        picture[top:top + height, left:left + width] = chip[:height, :width]
    return picture


# ---- tiles ------------------------------------------------------------------------------------------------

def _tiles(scaled: "_Scaled") -> list[np.ndarray]:
    predicted, truth = scaled.example.predicted, scaled.example.truth
    tiles = [scaled.with_prompt(scaled.image.copy())]
    if truth is None:
        return [*tiles, scaled.tinted([(predicted, RIGHT)], outline=predicted)]
    areas = [(predicted & truth, RIGHT), (predicted & ~truth, TOO_MUCH), (truth & ~predicted, MISSED)]
    return [*tiles, scaled.tinted(areas, outline=predicted), scaled.tinted([(truth, RIGHT)], outline=truth)]


def _is_wide(example: Example) -> bool:
    height, width = example.image.shape[:2]
    return width > 2.5 * height


def _scale_to_area(example: Example, area: int, longest: int) -> float:
    """The factor that gives about `area` pixels, with no side above `longest`."""
    height, width = example.image.shape[:2]
    return min(math.sqrt(area / (height * width)), longest / max(height, width))


class _Scaled:
    """An example at tile size."""

    def __init__(self, example: Example, scale: float, image: np.ndarray | None = None) -> None:
        height, width = example.image.shape[:2]
        self.scale = scale
        self.size = (max(1, round(width * scale)), max(1, round(height * scale)))  # (w, h), as cv2 has it
        self.example = example
        self.image = image  # already of that size
        if image is None:
            self.image = cv2.resize(example.image, self.size,
                                    interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """(h, w) float32: the share of each tile pixel that the mask covers, so that a thin object stays visible."""
        return cv2.resize(mask.astype(np.float32), self.size,
                          interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_NEAREST)

    def tinted(self, areas: Sequence[tuple[np.ndarray, tuple[int, int, int]]], outline: np.ndarray,
               grey: bool = True) -> np.ndarray:
        """The image under coloured areas, with a white line around one mask, outside it: it may be thin.

        In dim `grey` the colours mean one thing only.
        """
        picture = self.image
        if grey:
            picture = cv2.merge([cv2.convertScaleAbs(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), alpha=DIM)] * 3)
        for mask, colour in areas:
            weight = np.float32(OPACITY) * self.coverage(mask)
            paint = cv2.merge([np.full(weight.shape, value, np.uint8) for value in colour])
            picture = cv2.blendLinear(picture, paint, 1 - weight, weight)
        if picture is self.image:
            picture = picture.copy()
        around = cv2.dilate((self.coverage(outline) > 0.5).astype(np.uint8), np.ones((3, 3), np.uint8))
        contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        return cv2.drawContours(picture, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)

    def with_prompt(self, picture: np.ndarray) -> np.ndarray:
        """Draws the box, + for foreground points and - for background points on `picture`."""
        radius = max(4, round(min(9, max(self.size) / 45)))
        if self.example.box is not None:
            corners = [self._pixel(self.example.box[:2]), self._pixel(self.example.box[2:])]
            cv2.rectangle(picture, *corners, (0, 0, 0), 3)
            cv2.rectangle(picture, *corners, (255, 255, 255), 1)
        for point, label in zip(self.example.points, self.example.point_labels):
            x, y = self._pixel(point)
            fill, ink = ((255, 255, 255), (0, 0, 0)) if label else ((0, 0, 0), (255, 255, 255))
            cv2.circle(picture, (x, y), radius + 1, ink, -1, cv2.LINE_AA)
            cv2.circle(picture, (x, y), radius, fill, -1, cv2.LINE_AA)
            arm = radius - 2
            cv2.line(picture, (x - arm, y), (x + arm, y), ink, 1 + radius // 6)
            if label:
                cv2.line(picture, (x, y - arm), (x, y + arm), ink, 1 + radius // 6)
        return picture

    def middle(self) -> tuple[int, int]:
        """The pixel deepest inside the predicted mask; of an empty one its first point, or its box's middle."""
        coverage = self.coverage(self.example.predicted)
        if coverage.any():
            inside = np.pad((coverage > 0.5 * coverage.max()).astype(np.uint8), 1)
            return cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1])[3]
        box = self.example.box
        return self._pixel(self.example.points[0] if self.example.points else np.reshape(box, (2, 2)).mean(axis=0))

    def _pixel(self, point: Sequence[float]) -> tuple[int, int]:
        return (round((point[0] + 0.5) * self.scale - 0.5), round((point[1] + 0.5) * self.scale - 0.5))


# ---- text and layout --------------------------------------------------------------------------------------

@lru_cache
def _font(size: int) -> ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and has most of the world's alphabets; else Pillow's own."""
    found = importlib.util.find_spec("matplotlib")  # looks it up, does not import it
    if found and found.origin:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _text(text: str, width: int, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A strip of one line, cut with … where it is longer than `width`."""
    font = _font(size)
    text = " ".join(text.split())[:width]  # no letter is narrower than a pixel
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    strip = Image.new("RGB", (width, round(size * 1.5)), BACKGROUND)
    ImageDraw.Draw(strip).text((0, round(size * 0.1)), text, colour, font)
    return np.array(strip)


def _chip(text: str, colour: tuple[int, int, int]) -> np.ndarray:
    """A small plate with a word, dark on bright colours and white on dark ones."""
    font = _font(15)
    plate = Image.new("RGB", (round(font.getlength(text)) + 8, 20), colour)
    bright = np.dot(colour, (0.3, 0.6, 0.1)) > 115
    ImageDraw.Draw(plate).text((4, 1), text, INK if bright else (255, 255, 255), font)
    return cv2.copyMakeBorder(np.array(plate), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=INK)


def _legend(width: int, lead: str = "") -> np.ndarray:
    size = 13
    strip = Image.new("RGB", (width, round(size * 1.8)), BACKGROUND)
    draw, font = ImageDraw.Draw(strip), _font(size)
    draw.text((0, 3), lead, GREY, font)
    x = round(font.getlength(lead))
    for colour, name in LEGEND:
        draw.rectangle((x, 5, x + size, 5 + size), colour, INK)
        draw.text((x + size + 5, 3), name, INK, font)
        x += size + 5 + round(font.getlength(name)) + 16
    return np.array(strip)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND[0], np.uint8)  # one number: numpy is slow to repeat three


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    return _stack([picture], width)


def _stack(pictures: Sequence[np.ndarray], width: int = 0) -> np.ndarray:
    """Below each other, at the left; at least `width` wide."""
    width = max(width, *(picture.shape[1] for picture in pictures))
    canvas, top = _blank(sum(picture.shape[0] for picture in pictures), width), 0
    for picture in pictures:
        canvas[top:top + picture.shape[0], :picture.shape[1]] = picture
        top += picture.shape[0]
    return canvas


def _beside(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Next to each other, at the top, `gap` pixels apart."""
    height = max(picture.shape[0] for picture in pictures)
    canvas, left = _blank(height, sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)), 0
    for picture in pictures:
        canvas[:picture.shape[0], left:left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return canvas


def _framed(picture: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(picture, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND)


# ---- plots ------------------------------------------------------------------------------------------------

def training_curves(log: "pd.DataFrame", path: str | Path) -> None:
    """Loss, IoU and learning rate by epoch, as one PNG. `log`: training_log.csv; its epoch 0 is the untuned model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, iou, rate = figure.subplots(1, 3)
    blue, orange = (0, 114 / 255, 178 / 255), (213 / 255, 94 / 255, 0)
    for axes, column, label, colour, marker in (
            (loss, "train_loss", "training", blue, "o"), (loss, "val_loss", "validation", orange, "s"),
            (iou, "train_iou", "training", blue, "o"), (iou, "val_iou", "validation", orange, "s"),
            (rate, "learning_rate", None, blue, "o")):
        known = log[["epoch", column]].dropna()
        if len(known):
            axes.plot(known["epoch"], known[column], color=colour, marker=marker, markersize=4, label=label)
    validated = log[["epoch", "val_iou"]].dropna()
    untuned, tuned = validated[validated["epoch"] == 0], validated[validated["epoch"] > 0]
    if len(untuned):
        value = untuned["val_iou"].iloc[0]
        iou.axhline(value, color="grey", linestyle=":", label=f"untuned, validation {value:.3f}")
    if len(tuned):
        best = tuned.loc[tuned["val_iou"].idxmax()]
        iou.plot(best["epoch"], best["val_iou"], color=orange, marker="*", markersize=14, linestyle="none",
                 label=f"best, epoch {best['epoch']:.0f}: {best['val_iou']:.3f}")
    for axes, title in ((loss, "loss"), (iou, "IoU"), (rate, "learning rate at the end of the epoch")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(-0.4, max(1, log["epoch"].max()) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def comparison_plot(base: np.ndarray, tuned: np.ndarray, mean: float, interval: tuple[float, float],
                    path: str | Path) -> None:
    """Paired IoUs against each other, and their differences with mean and 95 % interval (NaN: none), as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, histogram = figure.subplots(1, 2)
    difference = tuned - base
    blue, orange = (0, 114 / 255, 178 / 255), (213 / 255, 94 / 255, 0)
    size, alpha = (28, 0.7) if len(base) < 500 else (8, 0.35)
    for chosen, colour, marker, name in ((difference > 0, blue, "o", "tuned is better"),
                                         (difference < 0, orange, "s", "base is better"),
                                         (difference == 0, "grey", "d", "the same")):
        if chosen.any():
            scatter.scatter(base[chosen], tuned[chosen], size, color=colour, alpha=alpha, marker=marker, linewidths=0,
                            label=f"{name}: {int(chosen.sum())}")
    scatter.plot([0, 1], [0, 1], color="grey", linewidth=1)
    scatter.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="IoU of the base model",
                ylabel="IoU of the tuned model", title="each object")
    scatter.legend(fontsize=9, loc="lower right")
    reach = max(0.05, float(np.abs(difference).max()))
    edges = np.linspace(-reach, reach, 42)  # 41 bins: no edge at 0
    histogram.hist(difference[difference > edges[21]], edges, color=blue, alpha=0.7)
    histogram.hist(difference[difference < edges[20]], edges, color=orange, alpha=0.7)
    histogram.hist(difference[(difference >= edges[20]) & (difference <= edges[21])], edges, color="grey", alpha=0.7)
    histogram.axvline(0, color="grey", linewidth=1)
    text = f"mean {mean:+.3f}"
    if np.isfinite(interval).all():
        histogram.axvspan(*interval, color="black", alpha=0.15, label=f"95 % interval {interval[0]:+.3f} to "
                                                                      f"{interval[1]:+.3f}")
    histogram.axvline(mean, color="black", linestyle="--", label=text)
    histogram.set(xlabel="IoU tuned - IoU base", ylabel="objects", title="differences")
    histogram.legend(fontsize=9, loc="upper left")
    for axes in (scatter, histogram):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
