"""Images that look alike, whatever their names and bytes say: a perceptual hash of each, and the nearest ones.

The hash is ImageHash's pHash (the low frequencies of a DCT against their median) of 256 bits. Copies that were saved
anew, scaled, brightened, mirrored or turned by quarters differ in some 0 to 30 bits, different photos in about 128; the
nearest of a few hundred photos of one kind (cracks, scans, teeth) in 60 to 70.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

try:
    import imagehash
except ImportError:     # an environment from before this was needed, or a GPU machine with wheels for training only
    imagehash = None

SIDE = 16                       # the hash has SIDE x SIDE bits
HASH_BYTES = SIDE * SIDE // 8
MOST_BITS = 32                  # that differ between two images which look alike
LEAST_CONTRAST = 2.0            # grey levels; below it an image is blank, and its hash is that of noise
CHUNK = 100_000                 # images compared with at once; OpenCV's matcher takes 262,143


class Alike(NamedTuple):
    """An image of one list, by position, and the one of another list that it looks like."""
    index: int
    other: int


def available() -> bool:
    return imagehash is not None


def is_blank(image: np.ndarray) -> bool:
    """(H, W, 3) uint8 RGB without anything to see, such as a tile beside an orthomosaic's content."""
    return _small(image).std() < LEAST_CONTRAST


def perceptual_hashes(image: np.ndarray) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB -> (8, 32) uint8: the hash as it stands, and mirrored and turned in all eight ways.

    None for a blank image.
    """
    small = _small(image)
    if small.std() < LEAST_CONTRAST:
        return None
    views = [np.rot90(view, turns) for turns in range(4) for view in (small, small[:, ::-1])]
    hashes = [imagehash.phash(Image.fromarray(np.ascontiguousarray(view)), hash_size=SIDE).hash for view in views]
    return np.packbits(np.reshape(hashes, (len(views), -1)), axis=1)


def _small(image: np.ndarray) -> np.ndarray:
    """In grey, at the size that pHash works at."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_AREA)


def find_alike(hashes: Sequence[np.ndarray | None], others: Sequence[np.ndarray | None]) -> list[Alike]:
    """What `perceptual_hashes` gave of two lists -> those of the first that look like one of the second."""
    known = [index for index, views in enumerate(hashes) if views is not None]
    known_others = [index for index, views in enumerate(others) if views is not None]
    if not known or not known_others:
        return []
    unturned = np.stack([others[index][0] for index in known_others])
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    alike = []
    for index in tqdm(known, desc="images that look alike", unit="image", leave=False, disable=None):
        matches = [(match.distance, start + match.trainIdx) for start in range(0, len(unturned), CHUNK)
                   for match in matcher.match(hashes[index], unturned[start:start + CHUNK])]
        distance, other = min(matches)
        if distance <= MOST_BITS:
            alike.append(Alike(index, known_others[other]))
    return alike
