"""Three foreground clicks from a mask, by one of two strategies; or any clicks, at random.

Every point lies inside the mask, and the three differ wherever the mask has three pixels. Where the mask is thick
enough they keep away from its boundary, where a click says little about which side is meant. Same mask, same points.

All functions here take masks as (H, W) bool and give points as integer (x, y) pixels of that mask. `depth` is the
distance of a mask pixel to the nearest pixel outside, everything beyond the mask's own box counted as outside, accurate
to 2 %: it is only compared.
"""

from collections.abc import Sequence

import cv2
import numpy as np

PULL = 0.15            # a far point moves inside by up to this fraction of the farthest distance
DEEP = 0.5             # deep enough: this fraction of the greatest depth nearby
DEEPEST = 0.94         # of the greatest depth: 0.9 of it for certain, as depths are right to 2 %
SHELLS = 32            # radii tried for a curved mask
SHELL_PIXELS = 10_000  # pixels examined for that; of a larger mask only those on a grid
NEAR = 8               # pixels around a target that are searched first


def centre_and_opposite_points(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (3, 2) int64 xy: the centre of the mask, and two points at equal distance on opposite sides of it.

    The centre is the centroid, or the pole of inaccessibility where the centroid is outside. Straight masks: exact
    mirror images about the centre, one standard deviation out along the major axis. Masks so curved that their mirror
    image hardly meets them (arcs, rings): two points equally far from the centre, to within a pixel, as far apart and
    as opposite as the mask allows. Raises ValueError on an empty mask.
    """
    mask, corner = _cropped(mask)
    depth, moments = _depth(mask), _moments(mask)
    centre = _centre_or_pole(mask, depth, _centroid(moments))
    pair, reach = _mirrored_pair(depth, centre)
    if reach < 0.5 * _spread(moments)[0]:
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
    centre = _near_centre(mask, depth, _centroid(_moments(mask)))
    if (pair == centre).all(axis=1).any():
        free = mask.copy()
        free[pair[:, 1], pair[:, 0]] = False
        centre = _nearest(free, centre) if free.any() else centre
    return _ordered(centre, pair) + corner


def random_points(mask: np.ndarray, sets: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool -> (sets, count, 2) int64 xy: every pixel of the mask equally likely, the points of a set distinct.

    Where the mask has fewer than `count` pixels, points repeat. Raises ValueError on an empty mask.
    """
    pixels = np.flatnonzero(mask)
    if not pixels.size:
        raise ValueError("the mask is empty")
    drawn = pixels[[rng.choice(pixels.size, count, replace=pixels.size < count) for _ in range(sets)]]
    return np.stack([drawn % mask.shape[1], drawn // mask.shape[1]], axis=2)


def inner_click(mask: np.ndarray) -> tuple[int, int]:
    """(H, W) bool -> (x, y): the pixel of the mask farthest from its border. Raises ValueError on an empty mask."""
    mask, corner = _cropped(mask)
    return _deepest(_depth(mask, exact=True), corner)


def corrective_click(predicted: np.ndarray, truth: np.ndarray, clicked: Sequence[tuple[int, int]]
                     ) -> tuple[tuple[int, int], int] | None:
    """The click that corrects a mask, and its label: 1 where the mask is missing, 0 where it spills over.

    `predicted` and `truth` are (H, W) bool. It is the pixel farthest from the border of the thickest error, of either
    kind; pixels that were `clicked` already, as (x, y), do not count as errors. None where there is no error.
    """
    deepest = []
    for label, error in ((1, truth & ~predicted), (0, predicted & ~truth)):
        for x, y in clicked:
            error[y, x] = False
        if error.any():
            error, corner = _cropped(error)
            depth = _depth(error, exact=True)
            deepest.append((float(depth.max()), label, _deepest(depth, corner)))
    if not deepest:
        return None
    _, label, click = max(deepest, key=lambda error: (error[0], -error[1]))   # as thick: background, as in RITM
    return click, label


def _deepest(depth: np.ndarray, corner: np.ndarray) -> tuple[int, int]:
    """(x, y) of the first deepest pixel in reading order, `corner` being the (x, y) of the array's first pixel."""
    y, x = divmod(int(depth.argmax()), depth.shape[1])
    return int(x + corner[0]), int(y + corner[1])


def farthest_pair(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (2, 2) int64 xy: two mask pixels at the greatest distance of all, exact. The mask is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask.argmax(axis=1)[rows]
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)[rows]
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


def _depth(mask: np.ndarray, exact: bool = False) -> np.ndarray:
    """Distance of each mask pixel to the nearest pixel outside; right to 2 % in a third of the `exact` one's time."""
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    if not exact:
        return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # The last bit depends on where in memory the array is, and so would the first of equally deep pixels; squares of
    # distances between pixels are whole numbers.
    return np.sqrt(np.rint(depth * depth))


def _centre_or_pole(mask: np.ndarray, depth: np.ndarray, centroid: np.ndarray) -> np.ndarray:
    """The centroid where it is inside (moved off the boundary), else the pole of inaccessibility.

    The pole is the pixel of the deepest tenth nearest to the centroid, so that an even band has it in its middle.
    """
    if mask[centroid[1], centroid[0]]:
        return _near_centre(mask, depth, centroid)
    return _nearest(depth >= DEEPEST * depth.max(), centroid)


def _near_centre(mask: np.ndarray, depth: np.ndarray, centroid: np.ndarray) -> np.ndarray:
    """The mask pixel nearest to the centroid, moved off the boundary."""
    return _pulled_inside(depth, _nearest(mask, centroid), PULL * float(np.hypot(*mask.shape)))


def _moments(mask: np.ndarray) -> dict[str, float]:
    return cv2.moments(mask.view(np.uint8))  # of zeros and ones: the same as with binaryImage, in a third of the time


def _centroid(moments: dict[str, float]) -> np.ndarray:
    return np.rint([moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]]).astype(np.int64)


def _spread(moments: dict[str, float]) -> tuple[float, np.ndarray]:
    """Standard deviation of a mask's pixels along its major axis, and that axis as a unit (x, y)."""
    scatter = np.array([[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]]) / moments["m00"]
    variances, axes = np.linalg.eigh(scatter)
    return float(np.sqrt(max(variances[1], 0))), axes[:, 1]


def _mirrored_pair(depth: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Two pixels that mirror each other about `centre`, and their distance to it; (None, 0) where there are none."""
    x, y = centre
    height, width = depth.shape
    reach_x, reach_y = min(x, width - 1 - x), min(y, height - 1 - y)
    window = np.ascontiguousarray(depth[y - reach_y:y + reach_y + 1, x - reach_x:x + reach_x + 1])
    both = cv2.min(window, cv2.flip(window, -1))
    both[reach_y, reach_x] = 0
    deepest = both.max()
    if deepest == 0:
        return None, 0.0
    deviation, axis = _spread(_moments(both > 0))
    middle = np.array([reach_x, reach_y])
    offset = _nearest(both >= DEEP * deepest, middle + deviation * axis) - middle
    return np.stack([centre + offset, centre - offset]), float(np.linalg.norm(offset))


def _equidistant_pair(depth: np.ndarray, centre: np.ndarray) -> np.ndarray | None:
    """Two pixels equally far from `centre` to within a pixel, in directions 60 degrees or more apart; None: none such.

    Of all such pairs the one that is both far apart and opposite: greatest chord x (chord / radius).
    """
    deep = depth >= DEEP * depth.max()
    step = int(np.ceil(np.sqrt(np.count_nonzero(deep) / SHELL_PIXELS)))
    for usable, every in ((deep, step), (deep, 1), (depth > 0, 1)):
        ys, xs = np.nonzero(usable[::every, ::every])
        pixels = every * np.stack([xs, ys], axis=1)
        shell = np.rint(np.sqrt(((pixels - centre) ** 2).sum(axis=1))).astype(np.int64)
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
    near = NEAR
    while True:  # mostly the first, small window has it
        x0, y0 = np.maximum(np.floor(target).astype(np.int64) - near, 0)
        x1, y1 = np.maximum(np.floor(target).astype(np.int64) + near + 2, 0)
        window = mask[y0:y1, x0:x1]
        if window.any():
            distance = np.where(window, _squared_distance(window.shape, target - (x0, y0)), np.float32(np.inf))
            y, x = divmod(int(distance.argmin()), window.shape[1])
            if distance[y, x] <= near ** 2 or window.shape == mask.shape:
                return np.array([x + x0, y + y0])
        near *= 4


def _squared_distance(shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """(H, W) float32: of every pixel to `target` (x, y)."""
    y, x = (np.arange(length, dtype=np.float32) for length in shape)
    return np.add.outer((y - np.float32(target[1])) ** 2, (x - np.float32(target[0])) ** 2)


def _ordered(centre: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Centre first, then the pair from left to right (from top to bottom where x is equal)."""
    return np.concatenate([centre[None], pair[np.lexsort((pair[:, 1], pair[:, 0]))]])
