"""A grey example image with a truth and a prediction, for the tests of pictures."""

import numpy as np

from sam_lora.drawing import Example


def example(height: int, width: int, truth: bool = True, **changes) -> Example:
    """A grey picture; the truth is its left half, the prediction its middle, over the lower half."""
    image = np.full((height, width, 3), 128, np.uint8)
    true, predicted = np.zeros((2, height, width), dtype=bool)
    true[height // 2:, :width // 2] = True
    predicted[height // 2:, width // 4:3 * width // 4] = True
    parts = {"image": image, "points": [(width / 8, height * 0.75)], "point_labels": [1], "box": None,
             "predicted": predicted, "truth": true if truth else None, **changes}
    return Example(**parts)
