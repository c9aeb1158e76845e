"""The parts of pictures: text, layout, an example scaled to a tile with its prompt and masks, crops on a sheet.

Pictures are (H, W, 3) uint8 RGB, drawn with OpenCV, text with Pillow. Three colours of Okabe and Ito's palette, which
differ in hue and in brightness, tell right, too much and missed apart for colour-blind readers and on grey printouts.
"""

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RIGHT, TOO_MUCH, MISSED = (86, 180, 233), (213, 94, 0), (240, 228, 66)  # sky blue, vermilion, yellow
LEGEND = ((RIGHT, "right"), (TOO_MUCH, "too much"), (MISSED, "missed"))
BACKGROUND, INK, GREY = (250, 250, 250), (20, 20, 20), (105, 105, 105)
OPACITY, DIM = 0.6, 0.8  # of the colours; of the grey picture under them
GAP = 8
JOINED = "\u0590"  # from Hebrew on, letters join, run from right to left or combine
CROP_TILE, CROP_COLUMNS = (200, 150), 6          # (w, h)


@dataclass(frozen=True)
class Example:
    """One image with its prompt and masks; coordinates are xy pixels of the image."""

    image: np.ndarray                  # (H, W, 3) uint8 RGB
    points: Sequence[Sequence[float]]
    point_labels: Sequence[int]        # 1 foreground, 0 background
    box: Sequence[float] | None        # x0, y0, x1, y1
    predicted: np.ndarray              # (H, W) bool
    truth: np.ndarray | None           # (H, W) bool


# ---- an example at tile size ------------------------------------------------------------------------------

def scale_to_area(example: Example, area: int, longest: int) -> float:
    """The factor that gives about `area` pixels, with no side above `longest`."""
    height, width = example.image.shape[:2]
    return min(math.sqrt(area / (height * width)), longest / max(height, width))


class Scaled:
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
        """(h, w) float32: the fraction of each tile pixel that the mask covers, so that a thin object stays visible."""
        return cv2.resize(mask.astype(np.float32), self.size,
                          interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_NEAREST)

    def cover(self, mask: np.ndarray) -> np.ndarray:
        """`coverage` in whole numbers up to 255, (h, w) uint8."""
        return cv2.resize(mask.view(np.uint8) * np.uint8(255), self.size,
                          interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_NEAREST)

    @cached_property
    def dimmed(self) -> np.ndarray:
        """The image grey and dimmed, (h, w, 3)."""
        grey = cv2.convertScaleAbs(cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY), alpha=DIM)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)

    def tinted(self, areas: Sequence[tuple[np.ndarray, tuple[int, int, int]]], outline: np.ndarray,
               grey: bool = True) -> np.ndarray:
        """The image under coloured areas; these and the outline's are masks by `cover`, (h, w) uint8.

        The white outline runs just outside its mask, which may be thin. With `grey`, the image is dimmed and grey, so
        that colour only means the areas.
        """
        picture = (self.dimmed if grey else self.image).copy()
        for cover, colour in areas:
            self._tint(picture, cover, colour)
        around = cv2.dilate(cv2.compare(outline, 127, cv2.CMP_GT), np.ones((3, 3), np.uint8))
        contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        return cv2.drawContours(picture, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)

    def _tint(self, picture: np.ndarray, cover: np.ndarray, colour: tuple[int, int, int]) -> None:
        """Lays a colour over `picture` as far as it is covered; only the rectangle around that is computed."""
        x, y, width, height = cv2.boundingRect(cover)
        if not width:
            return
        rectangle = slice(y, y + height), slice(x, x + width)
        region, cover = picture[rectangle], cover[rectangle]
        paint = cv2.merge([np.full(cover.shape, value, np.uint8) for value in colour])
        tint = cv2.addWeighted(region, 1 - OPACITY, paint, OPACITY, 0)
        if self.scale < 1:
            weight = cover * np.float32(1 / 255)
            region[:] = cv2.blendLinear(region, tint, 1 - weight, weight)
        else:
            cv2.copyTo(tint, cover, region)

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


# ---- crops ------------------------------------------------------------------------------------------------

def crop_sheet(title: str, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Many crops on one picture. `cells`: pictures by `crop_cell`."""
    width = CROP_COLUMNS * CROP_TILE[0] + (CROP_COLUMNS - 1) * GAP
    parts = [text_strip(title, width, 18, INK)]
    for start in range(0, len(cells), CROP_COLUMNS):
        parts += [beside(cells[start:start + CROP_COLUMNS]), blank(GAP, width)]
    return framed(stack(parts))


def crop_cell(image: np.ndarray, mask: np.ndarray, heading: str, subheading: str) -> np.ndarray:
    """One crop, (H, W, 3) uint8 RGB, with the outline of its mask, (H, W) bool, under two lines of text."""
    height, width = mask.shape
    scaled = Scaled(Example(image, (), (), None, mask, None), min(CROP_TILE[0] / width, CROP_TILE[1] / height))
    coverage = scaled.coverage(mask)
    shown = coverage > 0.5 * coverage.max()  # half of the largest: a crack is thinner than a pixel here
    around = cv2.dilate(shown.astype(np.uint8), np.ones((5, 5), np.uint8))  # so that the line does not hide a thin one
    contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture = scaled.image.copy()
    for colour, thickness in ((INK, 3), (MISSED, 1)):  # seen on bright and on dark
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return stack([text_strip(heading, CROP_TILE[0], 14, INK), text_strip(subheading, CROP_TILE[0], 10, GREY),
                   widened(picture, CROP_TILE[0])])


# ---- text and layout --------------------------------------------------------------------------------------

@lru_cache
def font_of(size: int) -> ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and covers most of the world's scripts; otherwise Pillow's font."""
    matplotlib = importlib.util.find_spec("matplotlib")  # located, not imported
    if matplotlib and matplotlib.origin:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def text_strip(text: str, width: int, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A strip of one line, cut with … where it is longer than `width`."""
    text = " ".join(text.split())[:width]  # no letter is narrower than a pixel
    parts = [text_ink(part, size) for part in parts_of(text)]
    if sum(length for _, length in parts) > width:
        font = font_of(size)
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        parts = [text_ink(part, size) for part in parts_of(text + "…")]
    height, left = round(size * 1.5), 0.0
    strip, line = blank(height, width), np.zeros((height, width), np.uint8)
    for ink, length in parts:
        start = round(left)
        place = line[:, start:start + ink.shape[1]]
        np.maximum(place, ink[:, :place.shape[1]], out=place)
        left += length
    used = slice(0, max(1, math.ceil(left) + 1))
    strip[:, used] = cv2.LUT(cv2.cvtColor(line[:, used], cv2.COLOR_GRAY2RGB), _shades(colour))
    return strip


def parts_of(text: str) -> list[str]:
    """The text in parts that look the same alone: words, and a path's folders.

    Text with letters that join or run from right to left stays whole.
    """
    return re.findall(r"[^ /]+[ /]?|[ /]", text) if max(text, default="") < JOINED else [text]


@lru_cache(1024)
def text_ink(text: str, size: int) -> tuple[np.ndarray, float]:
    """How much of each pixel the text covers, (1.5 * size, w) uint8, and its length in pixels. Kept: most words recur.
    """
    font = font_of(size)
    length = font.getlength(text)
    ink = Image.new("L", (math.ceil(length) + 1, round(size * 1.5)))
    ImageDraw.Draw(ink).text((0, round(size * 0.1)), text, 255, font)
    return np.asarray(ink), length


@lru_cache
def _shades(colour: tuple[int, int, int]) -> np.ndarray:
    """From the background to `colour`, (1, 256, 3) uint8."""
    steps = np.linspace(0, 1, 256)[None, :, None]
    return np.round(BACKGROUND + steps * (np.array(colour) - BACKGROUND)).astype(np.uint8)


def chip(text: str, colour: tuple[int, int, int]) -> np.ndarray:
    """A small plate with a word, dark on bright colours and white on dark ones."""
    font = font_of(15)
    plate = Image.new("RGB", (round(font.getlength(text)) + 8, 20), colour)
    bright = np.dot(colour, (0.3, 0.6, 0.1)) > 115
    ImageDraw.Draw(plate).text((4, 1), text, INK if bright else (255, 255, 255), font)
    return cv2.copyMakeBorder(np.array(plate), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=INK)


@lru_cache
def legend(width: int, lead: str = "") -> np.ndarray:
    """The colours and what they mean, after the words of `lead`. Do not draw on it: it is kept."""
    size = 13
    strip = Image.new("RGB", (width, round(size * 1.8)), BACKGROUND)
    draw, font = ImageDraw.Draw(strip), font_of(size)
    draw.text((0, 3), lead, GREY, font)
    x = round(font.getlength(lead))
    for colour, name in LEGEND:
        draw.rectangle((x, 5, x + size, 5 + size), colour, INK)
        draw.text((x + size + 5, 3), name, INK, font)
        x += size + 5 + round(font.getlength(name)) + 16
    return np.array(strip)


def blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND[0], np.uint8)  # one number: numpy is slow to repeat three


def widened(picture: np.ndarray, width: int) -> np.ndarray:
    return stack([picture], width)


def stack(pictures: Sequence[np.ndarray], width: int = 0) -> np.ndarray:
    """Below each other, at the left; at least `width` wide."""
    width = max(width, *(picture.shape[1] for picture in pictures))
    canvas, top = blank(sum(picture.shape[0] for picture in pictures), width), 0
    for picture in pictures:
        canvas[top:top + picture.shape[0], :picture.shape[1]] = picture
        top += picture.shape[0]
    return canvas


def beside(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Next to each other, at the top, `gap` pixels apart."""
    height = max(picture.shape[0] for picture in pictures)
    canvas, left = blank(height, sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)), 0
    for picture in pictures:
        canvas[:picture.shape[0], left:left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return canvas


def framed(picture: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(picture, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND)
