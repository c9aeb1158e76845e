"""Pictures of results: panels, contact sheets, change sheets (base against tuned), overlays.

Pictures are (H, W, 3) uint8 RGB.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from sam_lora.drawing import (
    GAP,
    GREY,
    INK,
    MISSED,
    RIGHT,
    TOO_MUCH,
    Example,
    Scaled,
    beside,
    blank,
    chip,
    framed,
    legend,
    scale_to_area,
    stack,
    text_strip,
    widened,
)

OBJECT_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
                  (204, 121, 167))  # Okabe and Ito's, without black
PANEL_AREA, PANEL_LONGEST = 360 * 300, 620       # of one tile, pixels
OVERLAY_AREA, OVERLAY_LONGEST = 900 * 700, 1600
NARROWEST_TILE, NARROWEST_PANEL = 150, 720       # room for the words above
SHEET_TILE, SHEET_COLUMNS = (168, 200), 3        # most (w, h)
SHEET_CELL = 3 * SHEET_TILE[0] + 2 * GAP         # width
SHEET_AREA = 168 * 132
CHANGE_CELL, CHANGE_HEIGHT = 968, 280            # width; most height of a tile
CHANGE_AREA = 236 * 177


def panel(example: Example, heading: str, subheading: str) -> np.ndarray:
    """Image with its prompt, prediction and ground truth (where there is one) side by side, with a legend.

    The tiles of a very wide image go below each other.
    """
    tiles = tiles_of(Scaled(example, scale_to_area(example, PANEL_AREA, PANEL_LONGEST)))
    titles = ("image and prompt", "prediction", "ground truth")
    titled = [stack([text_strip(title, max(NARROWEST_TILE, tile.shape[1]), 15, GREY), tile])
              for title, tile in zip(titles, tiles)]
    row = (stack if is_wide(example) else beside)(titled)
    width = max(row.shape[1], NARROWEST_PANEL)
    parts = [text_strip(heading, width, 17, INK), text_strip(subheading, width, 13, GREY), row]
    if example.truth is not None:
        parts.append(legend(width))
    return framed(stack(parts))


def contact_sheet(title: str, sections: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
    """Many examples on one picture. `sections`: (heading, pictures by `sheet_cell`)."""
    width = SHEET_COLUMNS * SHEET_CELL + (SHEET_COLUMNS - 1) * 3 * GAP
    parts = [text_strip(title, width, 22, INK),
             legend(width, "each cell: image and prompt | prediction | ground truth      ")]
    for heading, cells in sections:
        parts.append(text_strip(heading, width, 18, INK))
        for start in range(0, len(cells), SHEET_COLUMNS):
            parts += [beside(cells[start:start + SHEET_COLUMNS], 3 * GAP), blank(GAP, width)]
    return framed(stack(parts))


def sheet_cell(example: Example, caption: str) -> np.ndarray:
    """One example of a contact sheet: its tiles, small, under one line of text; very wide ones below each other."""
    height, width = example.image.shape[:2]
    if is_wide(example):
        tiles = tiles_of(Scaled(example, min(scale_to_area(example, SHEET_AREA, SHEET_CELL), SHEET_CELL / width)))
        return stack([text_strip(caption, SHEET_CELL, 14, INK), *(stack([tile, blank(3, 1)]) for tile in tiles)])
    scale = min(scale_to_area(example, SHEET_AREA, SHEET_CELL), SHEET_TILE[0] / width, SHEET_TILE[1] / height)
    tiles = tiles_of(Scaled(example, scale))
    return stack([text_strip(caption, SHEET_CELL, 14, INK), beside([widened(tile, SHEET_TILE[0]) for tile in tiles])])


def change_sheet(title: str, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Objects on which base and tuned differ most. `cells`: pictures by `change_cell`."""
    return framed(stack([text_strip(title, CHANGE_CELL, 22, INK), legend(CHANGE_CELL),
                           *(stack([blank(GAP, CHANGE_CELL), cell]) for cell in cells)]))


def change_cell(base: Example, tuned: Example, heading: str, subheading: str) -> np.ndarray:
    """One object of a change sheet: image and prompt, base prediction, tuned prediction, ground truth, all titled.

    Both have the same image and truth. Very wide pictures go in two rows of two.
    """
    height, width = base.image.shape[:2]
    columns = 2 if is_wide(base) else 4
    tile_width = (CHANGE_CELL - (columns - 1) * GAP) // columns
    scale = min(scale_to_area(base, CHANGE_AREA * 4 // columns, CHANGE_CELL), CHANGE_HEIGHT / height,
                tile_width / width)
    prompt, before, truth = tiles_of(Scaled(base, scale))
    after = tiles_of(Scaled(tuned, scale))[1]
    titled = [stack([text_strip(title, tile_width, 13, GREY), tile]) for title, tile in
              (("image and prompt", prompt), ("base", before), ("tuned", after), ("ground truth", truth))]
    return stack([text_strip(heading, CHANGE_CELL, 15, INK), text_strip(subheading, CHANGE_CELL, 12, GREY),
                   *(beside(titled[start:start + columns]) for start in range(0, 4, columns))])


def overlay(example: Example) -> np.ndarray:
    """The image with its prompt and the predicted mask on it, small images enlarged and large ones reduced."""
    scaled = Scaled(example, scale_to_area(example, OVERLAY_AREA, OVERLAY_LONGEST))
    cover = scaled.cover(example.predicted)
    return scaled.with_prompt(scaled.tinted([(cover, RIGHT)], outline=cover, grey=False))


def numbered_overlay(examples: Iterable[Example]) -> np.ndarray:
    """One image with the prompts and predicted masks of several objects, numbered from 1 in different colours.

    The `examples` share their image; each is drawn before the next is asked for.
    """
    picture, plates = None, []
    for number, example in enumerate(examples, start=1):
        scaled = Scaled(example, scale_to_area(example, OVERLAY_AREA, OVERLAY_LONGEST), picture)
        colour = OBJECT_COLOURS[(number - 1) % len(OBJECT_COLOURS)]
        cover = scaled.cover(example.predicted)
        picture = scaled.with_prompt(scaled.tinted([(cover, colour)], outline=cover, grey=False))
        plates.append((scaled.middle(), chip(str(number), colour)))
    return _with_plates(picture, plates)


def marked_photo(image: np.ndarray, marks: Sequence[tuple[np.ndarray, tuple[int, int, int], str]]) -> np.ndarray:
    """A photo with several objects on it. `marks`: mask (H, W) bool, colour, and what to write at it."""
    height, width = image.shape[:2]
    longest = min(OVERLAY_LONGEST / max(height, width), (OVERLAY_AREA / (height * width)) ** 0.5)
    picture, plates = None, []
    for mask, colour, text in marks:
        scaled = Scaled(Example(image, (), (), None, mask, None), longest, picture)
        cover = scaled.cover(mask)
        picture = scaled.tinted([(cover, colour)], outline=cover, grey=False)
        plates.append((scaled.middle(), chip(text, colour)))
    if picture is None:
        return Scaled(Example(image, (), (), None, np.zeros((height, width), bool), None), longest).image
    return _with_plates(picture, plates)


def _with_plates(picture: np.ndarray, plates: Sequence[tuple[tuple[int, int], np.ndarray]]) -> np.ndarray:
    """Draw (middle xy, plate) on the picture, last of all, so that no mask covers a word."""
    for (x, y), plate in plates:
        height, width = np.minimum(plate.shape[:2], picture.shape[:2]).tolist()
        left = min(max(x - width // 2, 0), picture.shape[1] - width)
        top = min(max(y - height // 2, 0), picture.shape[0] - height)
        picture[top:top + height, left:left + width] = plate[:height, :width]
    return picture


def found_photo(image: np.ndarray, marks: Sequence[tuple[np.ndarray, tuple[int, int, int], str]], heading: str
                ) -> np.ndarray:
    """A photo with the objects found, with those that are false and those that were missed, with a legend."""
    picture = marked_photo(image, marks)
    width = max(picture.shape[1], NARROWEST_PANEL)
    return framed(stack([text_strip(heading, width, 16, INK), picture, legend(width)]))


def tiles_of(scaled: Scaled) -> list[np.ndarray]:
    tiles, truth = [scaled.with_prompt(scaled.image.copy())], scaled.example.truth
    predicted = scaled.cover(scaled.example.predicted)
    if truth is None:
        return [*tiles, scaled.tinted([(predicted, RIGHT)], outline=predicted)]
    right, truth = scaled.cover(scaled.example.predicted & truth), scaled.cover(truth)
    areas = [(right, RIGHT), (cv2.subtract(predicted, right), TOO_MUCH), (cv2.subtract(truth, right), MISSED)]
    return [*tiles, scaled.tinted(areas, outline=predicted), scaled.tinted([(truth, RIGHT)], outline=truth)]


def is_wide(example: Example) -> bool:
    height, width = example.image.shape[:2]
    return width > 2.5 * height
