"""What a file's name says of the photo it comes from: that it is a copy, a tile or a video frame of another.

Only names that tools and people commonly give count (the README lists them). Some need evidence from the other files:
`wall_dark.jpg` is a copy of `wall.jpg` where that is there, or `wall_flip.jpg`; alone it is a photo.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

COPY, TILE, FRAME = "copies", "tiles", "frames"
SURE, PHOTO_THERE, RELATED, GRID = "sure", "photo there", "photo or other effect there", "a grid from 0 0 on"
SMALLEST_TILE = 64          # pixels; four smaller numbers may be a date and a time
BREAK = r"[ ._-]+"          # what stands between a photo's name and what was added
NUMBER = r"[ ._-]?\d+(?!\d)"
TILE_WORD = r"(?:(?:tile|patch|slice|crop)s?[ ._-]?)?"
ROW, COLUMN = r"(?:r(?:ow)?|i)[ _-]?(?P<row>\d+)", r"(?:c(?:ol(?:umn)?)?|j)[ _-]?(?P<column>\d+)"
IMAGE_ENDING = re.compile(r"[._](?:jpe?g|png|bmp|tiff?|webp|gif)$", re.IGNORECASE)   # Roboflow: 217_jpg.rf.<hash>.jpg
EFFECT = (r"(?:(?:[hv]|hor|ver|horizontal|vertical)?[ ._-]?flip(?:ped)?(?:[ ._-]?(?:lr|ud|[hvxy]|horizontal|vertical))?"
          r"|mirror(?:ed)?|rot(?:ate|ated|ation)?|transposed?|blur(?:red)?|gauss(?:ian)?[ ._-]?(?:blur|noise)?|noise"
          r"|noisy|salt[ ._-]?pepper|bright(?:ness|er|en|ened)?|dark(?:er|en|ened)?|contrast|gamma|hue|sat(?:uration)?"
          r"|hsv|colou?r|(?:colou?r[ ._-]?)?jitter|gr[ae]y(?:scale)?|clahe|equali[sz]ed?|sharp(?:en|ened)?"
          r"|shear(?:ed)?|scaled?|zoom(?:ed)?|shift(?:ed)?|translat(?:e|ed|ion)|elastic|distort(?:ed|ion)?|affine"
          r"|perspective|cutout|erased?|dropout|mosaic|mixup|cutmix|invert(?:ed)?|resized?|jpeg|compress(?:ed)?"
          r"|orig(?:inal)?)")


class Pattern(NamedTuple):
    """`regex` finds a whole stem; its group `photo` is the photo's name, the others tell the place in it: x and y in
    pixels, row and column, number of a frame, or a and b: pixels or row and column, in whichever order."""
    kind: str
    regex: re.Pattern[str]
    needs: str = SURE


def _pattern(kind: str, photo: str, rest: str, needs: str = SURE) -> Pattern:
    return Pattern(kind, re.compile(photo + rest, re.IGNORECASE), needs)


ANY, ANY_LETTERS = r"(?P<photo>.+?)", r"(?P<photo>.*[^\W\d_].*)"
PATTERNS = (
    # exports and augmentation scripts
    _pattern(COPY, ANY, r"\.rf\.[0-9a-z_-]{8,}"),
    _pattern(COPY, r".*?_original_(?P<photo>.+)", r"\.\w{3,4}_[0-9a-f]{8}-[0-9a-f-]{27}"),             # Augmentor
    _pattern(COPY, ANY, BREAK + r"aug(?:m|ment|mented|mentation)?(?:" + NUMBER + r"|[ ._-][0-9a-f][0-9a-f-]{5,}){0,4}"),
    _pattern(COPY, r"aug(?:mented|mentation)?(?:" + NUMBER + "){0,3}" + BREAK, ANY_LETTERS),           # aug_3_photo
    _pattern(COPY, r"aug(?:mented)?(?:" + NUMBER + "){0,3}" + BREAK, ANY, PHOTO_THERE),
    _pattern(COPY, r"(?P<photo>aug(?:mented)?_\d+)", r"_\d{1,8}"),                                     # Keras
    _pattern(COPY, ANY, "(?:" + BREAK + EFFECT + r"(?:[ ._-]?-?\d+(?!\d)){0,3}(?:deg)?)+", RELATED),
    # copies by hand
    _pattern(COPY, ANY, BREAK + r"(?:copy|kopie)(?:[ ._-]?\(?\d+\)?)?"),
    _pattern(COPY, r"copy of ", ANY),
    _pattern(COPY, ANY, r"[ _]?\(\d+\)", PHOTO_THERE),         # Windows numbers different photos so, too
    # tiles
    _pattern(TILE, ANY, r"[_-](?P<x>\d+)[_-](?P<y>\d+)[_-](?P<x1>\d+)[_-](?P<y1>\d+)"),                # SAHI
    _pattern(TILE, ANY, r"\.tile\.(?P<x>\d+)\.(?P<y>\d+)"),                                            # this project
    _pattern(TILE, ANY, r"__1(?:\.0)?__(?P<x>\d+)___(?P<y>\d+)"),                                      # DOTA
    _pattern(TILE, ANY, r"__\d+(?:\.\d+)?__-?\d+___-?\d+"),
    _pattern(TILE, ANY, BREAK + TILE_WORD + r"x[ _-]?(?P<x>\d+)[ ._-]*y[ _-]?(?P<y>\d+)"),
    _pattern(TILE, ANY, BREAK + TILE_WORD + r"y[ _-]?(?P<y>\d+)[ ._-]*x[ _-]?(?P<x>\d+)"),
    _pattern(TILE, ANY, BREAK + f"{TILE_WORD}{ROW}[ ._-]*{COLUMN}"),
    _pattern(TILE, ANY, BREAK + f"{TILE_WORD}{COLUMN}[ ._-]*{ROW}"),
    _pattern(TILE, ANY, BREAK + r"(?:tile|patch|slice|crop|chip|block|window|win|part|sub|grid)s?"
                                r"[ ._-]?(?P<a>\d+)[ ._x-](?P<b>\d+)"),
    _pattern(TILE, ANY, BREAK + r"(?:tile|patch|slice|crop)s?(?:[ ._-]?(?:no|nr|[xyz])?" + NUMBER + "){1,4}"),
    _pattern(TILE, ANY, BREAK + r"(?:chip|block|window|win|part|sub|grid)s?(?:" + NUMBER + "){2,4}"),
    _pattern(TILE, r"(?:tile|patch|slice|crop)s?(?:" + NUMBER + "){1,4}" + BREAK, ANY_LETTERS),        # tile_0_3_photo
    _pattern(TILE, ANY, BREAK + r"z[ _-]?\d{2,}"),                                                    # of a stack
    _pattern(TILE, ANY, r"[_-](?P<a>\d+)[_-](?P<b>\d+)", GRID),
    # frames of a video
    _pattern(FRAME, ANY, r"[ ._-](?:mp4|mov|avi|mkv|m4v|wmv|mpe?g|webm|mts)" + BREAK
             + r"(?:frame[ ._-]?)?(?P<number>\d+)"),
    _pattern(FRAME, r"(?:(?P<photo>.*[^a-z])??)", r"(?:frame|frm)s?[ ._-]?(?:no|nr|num|#)?[ ._-]?(?P<number>\d+)"),
    _pattern(FRAME, r"(?P<photo>(?:.*[^a-z])??(?:video|vid|clip|movie|sequence|seq)[ _-]?(?:\d+|[a-z]\d*))",
             BREAK + r"(?P<number>\d+)"),
    _pattern(FRAME, ANY, BREAK + r"f(?P<number>\d{4,})"),
    _pattern(FRAME, ANY, BREAK + r"t[=_]?(?P<number>\d+)(?:\.\d+)?s"),
    _pattern(FRAME, ANY, BREAK + r"\d{1,2}h\d{2}m\d{2}s\d*"),
)


class Origin(NamedTuple):
    """What a file's stem says. A photo of its own has no kinds."""
    photo: str                          # the stem of the photo; "" of frames whose names say nothing of their video
    kinds: tuple[str, ...] = ()         # COPY, TILE, FRAME, from the end of the name on
    place: dict[str, int] | None = None   # in it, as `Pattern` says
    looked_for: str = ""                # `photo` as the original file has it, without Roboflow's _jpg


def origins(stems: Sequence[str]) -> list[Origin]:
    """The origin of each file, by its stem, which it shares with its neighbours where they are given, too."""
    evidence = _Evidence(stems)
    return [_origin(stem, evidence) for stem in stems]


class _Evidence:
    """What all names together say: which photos are there, their effects, and the places of their tiles."""

    def __init__(self, stems: Iterable[str]):
        self.photos: set[str] = set(stems)
        self._effects: dict[str, set[str]] = defaultdict(set)
        self._places: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for stem in {*self.photos}:
            sure = True
            for pattern, match, rest in _steps(stem, None):
                sure = sure and pattern.needs == SURE and pattern.kind == COPY
                if sure:        # a copy's photo counts as there, though it may only be there as copies
                    self.photos |= {rest, IMAGE_ENDING.sub("", rest)}
                if pattern.needs == RELATED:
                    self._effects[rest].add(re.sub(r"(?!90|180|270)\d+|[ ._-]|deg", "", match[0][len(rest):].lower()))
                if pattern.needs == GRID:
                    self._places[rest].add((int(match["a"]), int(match["b"])))

    def holds(self, pattern: Pattern, rest: str) -> bool:
        if pattern.needs == PHOTO_THERE:
            return rest in self.photos
        if pattern.needs == RELATED:
            return rest in self.photos or len(self._effects[rest]) > 1
        if pattern.needs == GRID:
            return _is_grid(self._places.get(rest, set()))
        return True


def are_pixels(numbers: Iterable[int]) -> bool:
    """Are two numbers in the names of tiles pixels, rather than row and column?"""
    numbers = {*numbers} - {0}
    return bool(numbers) and min(numbers) >= SMALLEST_TILE // 2 and max(numbers) >= SMALLEST_TILE


def _is_grid(places: Collection[tuple[int, int]]) -> bool:
    """Are they places of tiles: pixels from 0 0 on, or at least half of all rows and columns from 0 0 on?"""
    if not places:
        return False
    a, b = ({*numbers} for numbers in zip(*places))
    if min(a) or min(b):
        return False
    return are_pixels(a | b) or (len(a) > 1 and len(b) > 1 and 2 * len(places) >= (max(a) + 1) * (max(b) + 1))


def _origin(stem: str, evidence: _Evidence) -> Origin:
    kinds, place, photo = [], None, stem
    for pattern, match, rest in _steps(stem, evidence):
        kinds.append(pattern.kind)
        photo = rest
        place = {name: int(text) for name, text in match.groupdict().items() if name != "photo"}
    looked_for = IMAGE_ENDING.sub("", photo) if kinds else photo
    return Origin(photo, tuple(kinds), place if len(kinds) == 1 and place else None, looked_for)


def _steps(stem: str, evidence: _Evidence | None) -> Iterator[tuple[Pattern, re.Match[str], str]]:
    """Take off what was added to the photo's name, one at a time -> (pattern, its match, the rest of the name)."""
    while stem:
        for text in dict.fromkeys((stem, IMAGE_ENDING.sub("", stem))):
            found = next(_matches(text, evidence), None)
            if found:
                break
        else:
            return
        yield found
        stem = found[2]


def _matches(stem: str, evidence: _Evidence | None) -> Iterator[tuple[Pattern, re.Match[str], str]]:
    for pattern in PATTERNS:
        match = pattern.regex.fullmatch(stem)
        if match is None:
            continue
        rest = (match["photo"] or "").strip(" ._-")
        if (rest or pattern.kind == FRAME) and _is_place(match) and (evidence is None or evidence.holds(pattern, rest)):
            yield pattern, match, rest


def _is_place(match: re.Match[str]) -> bool:
    """Are four numbers a tile's box, rather than a date and a time?"""
    numbers = match.groupdict()
    if "x1" not in numbers:
        return True
    padded = any(len(numbers[name]) > 1 and numbers[name].startswith("0") for name in ("x", "y", "x1", "y1"))
    return not padded and all(int(numbers[f"{axis}1"]) - int(numbers[axis]) >= SMALLEST_TILE for axis in "xy")
