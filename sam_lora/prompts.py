"""Three foreground clicks from a mask, by one of two strategies.

Every point lies inside the mask, and the three differ wherever the mask has three pixels. Where the mask is thick
enough they keep off its boundary, for a click there says little about which side is meant. Same mask, same points.

All functions here take masks as (H, W) bool and give points as integer (x, y) pixels of that mask. `depth` is the
distance of a mask pixel to the nearest pixel outside, the frame beyond the mask's own box counted as outside.
"""

import cv2
import numpy as np

PULL = 0.15            # a far point moves inside by up to this share of the farthest distance
DEEP = 0.5             # deep enough: this share of the greatest depth around
SHELLS = 32            # radii tried for a curved mask


def centre_and_opposite_points(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (3, 2) int64 xy: the centre of the mask, and two points at equal distance on opposite sides of it.

    The centre is the centroid, or the pole of inaccessibility where the centroid is outside. Straight masks: exact
    mirror images about the centre, one standard deviation out along the major axis. Masks so curved that their mirror
    image hardly meets them (arcs, rings): two points equally far from the centre, to within a pixel, as far apart and
    as opposite as the mask allows. Raises ValueError on an empty mask.
    """
    mask, corner = _cropped(mask)
    depth = _depth(mask)
    centre = _centre_or_pole(mask, depth)
    pair, reach = _mirrored_pair(depth, centre)
    if reach < 0.5 * _spread(mask)[0]:
        equidistant = _equidistant_pair(depth, centre)
        pair = equidistant if equidistant is not None else pair
    if pair is None:
        pair = _any_pair(mask, centre)
    return _ordered(centre, pair) + corner


def centre_and_farthest_points(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (3, 2) int64 xy: one point near the centre, and the two farthest-apart points pulled inside.

    Raises ValueError on an empty mask.
    """
    mask, corner = _cropped(mask)
    depth = _depth(mask)
    pair = farthest_pair(mask)
    radius = PULL * np.linalg.norm(pair[0] - pair[1])
    pair = np.stack([_pulled_inside(depth, point, radius) for point in pair])
    centre = _near_centre(mask, depth)
    if (pair == centre).all(axis=1).any():
        free = mask.copy()
        free[pair[:, 1], pair[:, 0]] = False
        centre = _nearest(free, centre) if free.any() else centre
    return _ordered(centre, pair) + corner


def farthest_pair(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (2, 2) int64 xy: two mask pixels at the greatest distance of all, exact. The mask is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([first, rows], axis=1), np.stack([last, rows], axis=1)])
    return _farthest(ends)


def _farthest(points: np.ndarray) -> np.ndarray:
    """(N, 2) integers -> the two farthest apart, which are corners of the convex hull."""
    hull = cv2.convexHull(points.astype(np.int32))[:, 0].astype(np.int64)
    squared = ((hull[:, None] - hull) ** 2).sum(axis=2)
    return hull[list(divmod(int(squared.argmax()), len(hull)))]


def _cropped(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask inside its own box, and the box's corner as (x, y)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("the mask is empty")
    y0, x0 = rows[0], columns[0]
    return np.ascontiguousarray(mask[y0:rows[-1] + 1, x0:columns[-1] + 1]), np.array([x0, y0])


def _depth(mask: np.ndarray) -> np.ndarray:
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _centre_or_pole(mask: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The centroid where it is inside (moved off the boundary), else the pole of inaccessibility.

    The pole is the pixel of the deepest tenth nearest to the centroid, so that an even band has it in its middle.
    """
    centroid = _centroid(mask)
    if mask[centroid[1], centroid[0]]:
        return _near_centre(mask, depth)
    return _nearest(depth >= 0.9 * depth.max(), centroid)


def _near_centre(mask: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The mask pixel nearest to the centroid, moved off the boundary."""
    return _pulled_inside(depth, _nearest(mask, _centroid(mask)), PULL * float(np.hypot(*mask.shape)))


def _centroid(mask: np.ndarray) -> np.ndarray:
    moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
    return np.rint([moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]]).astype(np.int64)


def _spread(mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Standard deviation of the mask's pixels along its major axis, and that axis as a unit (x, y)."""
    moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
    scatter = np.array([[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]]) / moments["m00"]
    variances, axes = np.linalg.eigh(scatter)
    return float(np.sqrt(max(variances[1], 0))), axes[:, 1]


def _mirrored_pair(depth: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Two pixels that mirror each other about `centre`, and their distance to it; (None, 0) where there are none."""
    x, y = centre
    height, width = depth.shape
    reach_x, reach_y = min(x, width - 1 - x), min(y, height - 1 - y)
    window = depth[y - reach_y:y + reach_y + 1, x - reach_x:x + reach_x + 1]
    both = np.minimum(window, window[::-1, ::-1])
    both[reach_y, reach_x] = 0
    if not both.any():
        return None, 0.0
    deviation, axis = _spread(both > 0)
    middle = np.array([reach_x, reach_y])
    offset = _nearest(both >= DEEP * both.max(), middle + deviation * axis) - middle
    return np.stack([centre + offset, centre - offset]), float(np.linalg.norm(offset))


def _equidistant_pair(depth: np.ndarray, centre: np.ndarray) -> np.ndarray | None:
    """Two pixels equally far from `centre` to within a pixel, in directions 60 degrees or more apart; None: none such.

    Of all such pairs the one that is both far apart and opposite: greatest chord x (chord / radius).
    """
    for floor in (DEEP * depth.max(), 0.5):
        ys, xs = np.nonzero(depth >= floor)
        pixels = np.stack([xs, ys], axis=1)
        shell = np.rint(np.linalg.norm(pixels - centre, axis=1)).astype(np.int64)
        radii = np.flatnonzero(np.bincount(shell)[1:] >= 2) + 1
        if len(radii) > SHELLS:
            radii = radii[np.linspace(0, len(radii) - 1, SHELLS).astype(int)]
        best, best_score = None, 0.0
        for radius in radii:
            pair = _farthest(pixels[shell == radius])
            chord = float(np.linalg.norm(pair[0] - pair[1]))
            if chord >= radius and chord ** 2 / radius > best_score:
                best, best_score = pair, chord ** 2 / radius
        if best is not None:
            return best
    return None


def _any_pair(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The farthest two of the other pixels; of one or no other pixel, that one twice or the centre."""
    rest = mask.copy()
    rest[centre[1], centre[0]] = False
    return farthest_pair(rest) if rest.any() else np.stack([centre, centre])


def _pulled_inside(depth: np.ndarray, point: np.ndarray, radius: float) -> np.ndarray:
    """The pixel nearest to `point` that is deep enough for what lies within `radius` of it."""
    reach = int(radius)
    corner = np.maximum(point - reach, 0)
    window = depth[corner[1]:point[1] + reach + 1, corner[0]:point[0] + reach + 1]
    window = np.where(_squared_distance(window.shape, point - corner) <= radius ** 2, window, 0)
    return _nearest(window >= DEEP * window.max(), point - corner) + corner


def _nearest(mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The pixel of `mask` nearest to `target` (x, y); the first in reading order of several."""
    distance = np.where(mask, _squared_distance(mask.shape, target), np.float32(np.inf))
    y, x = divmod(int(distance.argmin()), mask.shape[1])
    return np.array([x, y])


def _squared_distance(shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """(H, W) float32: of every pixel to `target` (x, y)."""
    y, x = (np.arange(length, dtype=np.float32) for length in shape)
    return np.add.outer((y - np.float32(target[1])) ** 2, (x - np.float32(target[0])) ** 2)


def _ordered(centre: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Centre first, then the pair from left to right (from top to bottom where x is equal)."""
    return np.concatenate([centre[None], pair[np.lexsort((pair[:, 1], pair[:, 0]))]])
