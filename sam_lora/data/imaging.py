"""Any image file -> upright 8-bit RGB; masks; atomic PNG and JPEG writing.

A file's content says what it is, not its suffix. Paths may hold any character.
"""

import functools
import importlib
import os
import struct
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from sam_lora.errors import UserError
from sam_lora.files import atomic_path

HEIC_SUFFIXES = (".heic", ".heif")   # which Pillow opens with a package of its own
# of files that count as photos although nothing but their name says so; an annotation may name any other
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif",
                  *HEIC_SUFFIXES, ".gif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga")
YOLO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")   # those that every YOLO tool reads
EXIF_ORIENTATION = 274
FIRST_PAGE = "a photo had several pages or frames; the first was used"
ON_WHITE = "a photo had transparent pixels; they became white"
CLEAR = "a photo was transparent everywhere; its colours were used"
MORE_BANDS = "a TIFF had more bands than red, green and blue; the first three were used"
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS_PER_SAMPLE, TIFF_EXTRA_SAMPLES, TIFF_SAMPLE_FORMAT = 256, 257, 258, 338, 339
TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_PLANES = 262, 277, 284
SEPARATE = 2
PREMULTIPLIED, ALPHA = 1, 2     # what a TIFF's first extra sample may be
MOST_BANDS_OF_PILLOW = 5
MOST_VOC_CLASSES = 32
LARGEST_LABEL = 65_535          # below the brightest value of 16 bits
MAX_PIXELS = 500_000_000        # a photo takes up to 7 bytes a pixel while it is read

# Measured on crops (benchmarks/RESULTS.md): level 1 with the Up filter takes a fifth of level 6's time for a tenth to
# a fifth more bytes; OpenCV's own default is as fast and up to half larger.
# OpenCV before 4.12 cannot choose the filter: there files are larger, with the same pixels.
FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
MASK_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1,
            cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]  # two thirds of the time, half the bytes
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    FAST_PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    MASK_PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


class ImageError(UserError):
    """The file is not an image, or a broken one. `reason` is the message without the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):  # exceptions with two arguments do not unpickle by themselves
        return type(self), (self.path, self.reason)


# ---- reading ----------------------------------------------------------------------------------------------

def load_image(path: str | Path, upright: bool = True, notes: Counter | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB, rotated as its EXIF orientation says unless `upright` is off (a TIFF is always upright).

    Only the first page or frame is read; that there are more is counted in `notes`, and so is what follows. Deeper than
    8 bits: the 0.1 to 99.9 percentile range is stretched to 0..255. Transparency: laid on white, unless everything is
    transparent. A TIFF's bands beyond the third are left out, but one that it calls alpha and that looks like it.
    Raises ImageError.
    """
    notes = Counter() if notes is None else notes
    if (pixels := _unusual_tiff(path)) is not None:
        if pixels.shape[2] > 3:
            notes[MORE_BANDS] += 1
        colours = np.ascontiguousarray(pixels[..., :3])
        return colours if colours.dtype == np.uint8 else _to_8_bit(colours)
    with _opened(path) as image:
        plain = _plain_jpeg(path, image, upright)
        if plain is not None:
            return plain
        deep = _deep(image)
        image.load()
        colours, alpha = (_deep_bands if deep else _bands)(path, image)
        if alpha is None and _has_more_bands(image):
            notes[MORE_BANDS] += 1
        if alpha is not None and alpha.min() < 1:
            clear = alpha.max() == 0
            notes[CLEAR if clear else ON_WHITE] += 1
            if not clear:
                colours = np.round(colours * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)
        if _has_more_pages(image):
            notes[FIRST_PAGE] += 1
        orientation = _orientation(image) if upright else 1
        return colours if orientation == 1 else np.array(_turned(Image.fromarray(colours), orientation))


def load_mask(path: str | Path) -> np.ndarray:
    """(H, W) bool, True where brighter than half the file's brightest value: 0/1, 0/255 and 0/65535 all work.

    Of a palette image the palette indices count. Rotated as `load_image` does. Raises ImageError, for a label map too,
    whose values number its objects.
    """
    with _opened(path) as image:
        deep = _deep(image)
        image.load()
        if deep:
            values = _deep_pixels(path, image)
            values = values if values.ndim == 2 else values[..., :3].max(axis=2)
        else:
            values = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
        if objects := _numbered_objects(values):
            raise ImageError(path, f"a label map of {objects} objects or classes, expected a mask of one object; "
                                   "give Create_csv.py or Create_yolo_csv.py --split_label_maps")
        mask, orientation = values > values.max() / 2, _orientation(image)
        return mask if orientation == 1 else np.array(_turned(Image.fromarray(mask), orientation))


def load_label_map(path: str | Path) -> dict[int, np.ndarray]:
    """{value: (H, W) bool} of a label map, as `load_mask` recognises it; {} for any other image. Raises ImageError."""
    with _opened(path) as image:
        deep = _deep(image)
        image.load()
        values = _deep_pixels(path, image) if deep else np.asarray(image if image.mode in ("P", "L") else
                                                                   image.convert("L"))
        if values.ndim != 2 or not _numbered_objects(values):
            return {}
        turned = np.array(_turned(Image.fromarray(values), _orientation(image)))
        return {int(value): turned == value for value in _labels(values)}


def _numbered_objects(values: np.ndarray) -> int:
    """How many objects the values of a label map number; 0 for a mask, of one object and its smooth edge.

    The values of a smooth edge lie all over the range up to the brightest, which most of the object has; those of a
    label map begin at 1, or are a few neighbours of a larger map.
    """
    if values.size == 0 or values.max() <= 1 or (values.dtype.kind == "f" and (values != np.round(values)).any()):
        return 0
    labels = _labels(values)
    if len(labels) < 2 or labels[-1] >= LARGEST_LABEL:
        return 0
    largest, dense = labels[-1], 2 * len(labels) > labels[-1]
    if labels[-1] < values.max():                   # VOC's 255 beside them
        return len(labels) if largest < 128 and (dense or largest <= MOST_VOC_CLASSES) else 0
    if largest < 128 or (values.dtype != np.uint8 and labels[0] > largest / 2):
        return len(labels)
    foreground = np.count_nonzero(values)
    bright = np.count_nonzero(values > 0.9 * largest) / foreground
    flat = np.count_nonzero((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > 0)) / foreground
    return len(labels) if dense and bright < 0.3 and flat > 0.5 else 0


def _labels(values: np.ndarray) -> np.ndarray:
    """The values but 0, sorted, of 8 bits also without 255, by which VOC marks what belongs to no object."""
    if values.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        return found[(found > 0) & (found < 255)]
    found = np.unique(values)
    return found[found > 0]


def image_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """(width, height) as `load_image` would return it, from the file's header alone.

    But a TIFF that Pillow cannot open is decoded. Raises ImageError.
    """
    if (pixels := _unusual_tiff(path)) is not None:
        return pixels.shape[1], pixels.shape[0]
    with _opened(path) as image:
        width, height = image.size
        sideways = upright and _may_be_turned(path, image) and _orientation(image) in (5, 6, 7, 8)
    return (height, width) if sideways else (width, height)


@functools.cache
def heic_opens() -> bool:
    """Can Pillow open HEIC here? It can where the package pillow-heif, or its reading half, is installed."""
    for name in ("pillow_heif", "pi_heif"):
        try:
            importlib.import_module(name).register_heif_opener()
        except ImportError:
            continue
        return True
    return False


@contextmanager
def _opened(path: str | Path):
    """Image.open whose every failure, while decoding too, is an ImageError."""
    if Path(path).suffix.lower() in HEIC_SUFFIXES:
        heic_opens()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata, very large images: not the user's concern
            with _at_most(MAX_PIXELS), Image.open(path) as image:
                yield image
    except FileNotFoundError as error:
        raise ImageError(path, "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(path, "is a folder, expected an image file") from error
    except PermissionError as error:
        raise ImageError(path, "no permission to read it") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(path, _unknown_kind(path)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"more than {MAX_PIXELS // 10**6} megapixels; cut it into several files") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
            ZeroDivisionError, RuntimeError, cv2.error) as error:      # RuntimeError: AVIF
        raise ImageError(path, f"broken image ({str(error).splitlines()[0] if str(error) else 'cannot be decoded'})"
                         ) from error


@contextmanager
def _at_most(pixels: int):
    """Pillow refuses an image twice as large as its limit, 89 megapixels at first."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _unknown_kind(path: str | Path) -> str:
    """What a file is that Pillow does not know."""
    with Path(path).open("rb") as file:
        start = file.read(64)
    if start[4:8] == b"ftyp":
        if start[8:12] in (b"avif", b"avis"):
            return "AVIF, which Pillow opens from 11.3 on; update it, or convert the photo"
        if start[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
            return "HEIC, which Pillow opens only with the package pillow-heif; install it, or convert the photo"
    if start.startswith(b"version https://git-lfs"):
        return "only a pointer of Git LFS, not the photo; fetch it with git lfs pull"
    return "not an image that can be read" if start else "empty file"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow itself rotates a TIFF, its size included
        return 1
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):  # a damaged EXIF block says nothing
        return 1


def _may_be_turned(path: str | Path, image: Image.Image) -> bool:
    """False for a PNG without metadata, of which Pillow would decode everything to look for EXIF at its end."""
    if image.format != "PNG":
        return True
    with Path(path).open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)  # its content and checksum
    return False


def _has_more_pages(image: Image.Image) -> bool:
    try:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # phones add a preview to a photo
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError, struct.error):
        return False


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    method = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
              5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_90}.get(orientation)
    return image if method is None else image.transpose(method)


def _plain_jpeg(path: str | Path, image: Image.Image, upright: bool) -> np.ndarray | None:
    """A whole JPEG that needs no rotation, by OpenCV: the same pixels as Pillow's, bit for bit, in a third of the time.

    None for any other file; then Pillow decides, which notices a truncated file.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or (upright and _orientation(image) != 1):
        return None
    data = Path(path).read_bytes()
    if not data.endswith(b"\xff\xd9"):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels if pixels is not None and pixels.shape[1::-1] == image.size else None


def _deep(image: Image.Image) -> bool:
    """Does it have more than 8 bits a channel? Pillow opens deep colour PNGs as plain RGB and drops the low bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if image.format == "TIFF":
        return int(np.max(image.tag_v2.get(TIFF_BITS_PER_SAMPLE, 8))) > 8
    return any(";16" in str(tile[3]) for tile in image.tile)


def _bands(path: str | Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """(colours (H, W, 3) uint8 RGB, alpha (H, W) from 0 to 1 or None) of an image of 8 bits a channel."""
    if image.mode == "L" and "transparency" not in image.info:
        return cv2.cvtColor(np.asarray(image), cv2.COLOR_GRAY2RGB), None
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return np.array(image if image.mode == "RGB" else image.convert("RGB")), None
    bands = np.asarray(image.convert("RGBA"))
    colours, alpha = np.ascontiguousarray(bands[..., :3]), bands[..., 3] / 255
    if _is_alpha(image, alpha):
        return colours, alpha
    if _extra_samples(image) == PREMULTIPLIED:      # Pillow has divided by what is no alpha
        stored = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.shape == bands.shape:
            return np.ascontiguousarray(stored[..., 2::-1]), None
    return colours, None


def _deep_bands(path: str | Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """As `_bands`, of an image of more than 8 bits a channel, stretched to 8."""
    pixels = _deep_pixels(path, image)
    if pixels.ndim == 2:
        return cv2.cvtColor(_to_8_bit(pixels), cv2.COLOR_GRAY2RGB), None
    colours = _to_8_bit(pixels[..., :3])
    if pixels.shape[2] != 4 or pixels.dtype.kind != "u":
        return colours, None
    alpha = pixels[..., 3] / np.iinfo(pixels.dtype).max
    return colours, alpha if _is_alpha(image, alpha) else None


def _extra_samples(image: Image.Image) -> int:
    """What a TIFF's first band beyond its colours is, 0 where it does not say or has none."""
    kinds = image.tag_v2.get(TIFF_EXTRA_SAMPLES) if image.format == "TIFF" else None
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return int(kinds[0] or 0) if kinds else 0


def _has_more_bands(image: Image.Image) -> bool:
    """Has a TIFF more bands than its colours are made of?"""
    if image.format != "TIFF":
        return False
    colours = {0: 1, 1: 1, 3: 1, 5: 4}.get(image.tag_v2.get(TIFF_PHOTOMETRIC), 3)
    return image.tag_v2.get(TIFF_SAMPLES, 1) > colours


def _is_alpha(image: Image.Image, alpha: np.ndarray) -> bool:
    """Is a fourth band transparency? In a TIFF it may be near-infrared, which many writers call alpha all the same.

    Most of a picture with transparent parts is either clear or opaque.
    """
    if image.format != "TIFF":
        return True
    return _extra_samples(image) in (PREMULTIPLIED, ALPHA) and bool(((alpha == 0) | (alpha == 1)).mean() >= 0.5)


def _deep_pixels(path: str | Path, image: Image.Image) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4) of the file's own dtype, RGB or RGBA, as stored (not rotated by EXIF, except a
    TIFF)."""
    grey = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if grey and image.format != "TIFF":
        return np.array(image)
    # OpenCV keeps deep colour, and rotates a deep TIFF correctly where Pillow 13 scrambles it
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return np.array(image)
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][:pixels.shape[2]]]


def _unusual_tiff(path: str | Path) -> np.ndarray | None:
    """(H, W, 3 or more) of a TIFF that Pillow cannot open: of floats (RGB only), or of bands that are not called RGB.

    None for any other file. Raises ImageError.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # damaged metadata
                tags.load(file)
        samples = tags.get(TIFF_SAMPLES, 1)
        if samples < 3 or tags[TIFF_WIDTH] * tags[TIFF_HEIGHT] > MAX_PIXELS:
            return None
        if 3 in tags.get(TIFF_SAMPLE_FORMAT, ()) and len(tags[TIFF_BITS_PER_SAMPLE]) >= 3:
            pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is not None and pixels.ndim == 3:
                return pixels[:, :, 2::-1]
        elif not _beyond_pillow(tags, samples):
            return None
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error, cv2.error):
        return None
    import tifffile
    try:
        with tifffile.TiffFile(path) as file:
            pixels = file.pages[0].asarray()
            separate = file.pages[0].planarconfig == tifffile.PLANARCONFIG.SEPARATE
        pixels = np.moveaxis(pixels, 0, 2) if separate else pixels
        if pixels.shape != (tags[TIFF_HEIGHT], tags[TIFF_WIDTH], samples) or pixels.dtype.kind not in "uif":
            raise ValueError("its header contradicts itself")
        return pixels
    except Exception as error:  # tifffile has no list of what it raises
        raise ImageError(path, f"a TIFF of {samples} bands that cannot be read ({str(error).splitlines()[0][:80]}); "
                               "expected an uncompressed one, or a PNG of red, green and blue") from error


def _beyond_pillow(tags: TiffImagePlugin.ImageFileDirectory_v2, samples: int) -> bool:
    if tags.get(TIFF_PHOTOMETRIC) in (0, 1) or samples > MOST_BANDS_OF_PILLOW:
        return True
    plain = max(tags[TIFF_BITS_PER_SAMPLE]) == 8 and tags.get(TIFF_EXTRA_SAMPLES, (ALPHA,)) == (ALPHA,)
    return samples > 3 and tags.get(TIFF_PLANES) == SEPARATE and not plain


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Stretch the 0.1 to 99.9 percentile range to 0..255; the whole range where that is a single value."""
    pixels = np.nan_to_num(pixels.astype(np.float64), posinf=0, neginf=0)
    low, high = np.percentile(pixels, (0.1, 99.9))
    if low == high:
        low, high = pixels.min(), pixels.max()
    if low == high:
        return np.full(pixels.shape, 128, dtype=np.uint8)
    return np.round((np.clip(pixels, low, high) - low) * (255 / (high - low))).astype(np.uint8)


# ---- writing ----------------------------------------------------------------------------------------------

def encode_png(array: np.ndarray) -> bytes:
    """(H, W) bool -> 0/255 one channel; (H, W) or (H, W, 3) uint8 RGB as it is."""
    return _encode(".png", array, MASK_PNG if array.dtype == bool else FAST_PNG)


def encode_jpeg(array: np.ndarray, quality: int = 92) -> bytes:
    """`array`: (H, W) or (H, W, 3) uint8 RGB."""
    return _encode(".jpg", array, (cv2.IMWRITE_JPEG_QUALITY, quality))


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write a PNG atomically. `array` as in `encode_png`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(array))


def write_jpeg(path: str | Path, array: np.ndarray, quality: int = 92) -> None:
    """Write a JPEG atomically. `array`: (H, W) or (H, W, 3) uint8 RGB."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_jpeg(array, quality))


def _encode(suffix: str, array: np.ndarray, settings: tuple[int, ...]) -> bytes:
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"expected (H, W) bool or uint8, or (H, W, 3) uint8 RGB; got {array.shape} {array.dtype}")
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, np.ascontiguousarray(array), settings)
    if not done:
        raise ValueError(f"cannot encode {array.shape} as {suffix}")
    return data.tobytes()
