"""The panel of bench_inference.py as a plain script draws it: the same tiles, words and size as `pictures.panel`.

It is written from scratch with OpenCV, numpy and Pillow and stays as it is, so that work on the package's drawing shows
in the ratio instead of helping both sides.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from sam_lora.drawing import font_of

AREA, LONGEST, NARROWEST, GAP = 360 * 300, 620, 720, 8
BLUE, ORANGE, YELLOW = (86, 180, 233), (213, 94, 0), (240, 228, 66)
PAPER, INK, GREY = (250, 250, 250), (20, 20, 20), (105, 105, 105)


def plain_panel(image: np.ndarray, points: Sequence[Sequence[float]], mask: np.ndarray, truth: np.ndarray,
                heading: str, subheading: str) -> np.ndarray:
    """Image with foreground points, prediction and ground truth side by side, (h, w, 3) uint8 RGB.

    `image` (H, W, 3) uint8 RGB; `mask` and `truth` (H, W) bool; points xy in its pixels.
    """
    height, width = image.shape[:2]
    scale = min((AREA / (height * width)) ** 0.5, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    grey = cv2.convertScaleAbs(grey, alpha=0.8)
    areas = ((mask & truth, BLUE), (mask & ~truth, ORANGE), (truth & ~mask, YELLOW))
    tiles = (("image and prompt", with_points(shown, points, scale)), ("prediction", tinted(grey, areas, mask)),
             ("ground truth", tinted(grey, ((truth, BLUE),), truth)))
    panel = Image.new("RGB", (max(NARROWEST, 3 * size[0] + 2 * GAP) + 2 * GAP, size[1] + 107), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((GAP, 10), heading, INK, font_of(17))
    draw.text((GAP, 35), subheading, GREY, font_of(13))
    for number, (title, tile) in enumerate(tiles):
        left = GAP + number * (size[0] + GAP)
        draw.text((left, 56), title, GREY, font_of(15))
        panel.paste(Image.fromarray(tile), (left, 76))
    left, top = GAP, size[1] + 81
    for colour, name in ((BLUE, "right"), (ORANGE, "too much"), (YELLOW, "missed")):
        draw.rectangle((left, top, left + 13, top + 13), colour, INK)
        draw.text((left + 18, top - 2), name, INK, font_of(13))
        left += 34 + round(font_of(13).getlength(name))
    return np.array(panel)


def with_points(picture: np.ndarray, points: Sequence[Sequence[float]], scale: float) -> np.ndarray:
    picture = picture.copy()
    for point in points:
        place = tuple(round((value + 0.5) * scale - 0.5) for value in point)
        cv2.circle(picture, place, 8, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(picture, place, 7, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.drawMarker(picture, place, (0, 0, 0), cv2.MARKER_CROSS, 10, 2)
    return picture


def tinted(grey: np.ndarray, areas: Sequence[tuple[np.ndarray, tuple[int, int, int]]],
           outline: np.ndarray) -> np.ndarray:
    """Colours over a grey picture, (h, w, 3) uint8, where the masks, (H, W) bool, are; a white line around one."""
    size, colours = grey.shape[1::-1], grey.copy()
    for area, colour in areas:
        colours[cv2.resize(area.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0] = colour
    picture = cv2.addWeighted(colours, 0.6, grey, 0.4, 0)
    around = cv2.dilate(cv2.resize(outline.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST),
                        np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)
