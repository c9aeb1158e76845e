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
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS_PER_SAMPLE, TIFF_SAMPLE_FORMAT = 256, 257, 258, 339

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

    Only the first page or frame is read; that there are more is counted in `notes`. Deeper than 8 bits: the 0.1 to 99.9
    percentile range is stretched to 0..255. Transparency: composited on white.
    Raises ImageError.
    """
    if (pixels := _float_colour(path)) is not None:
        return _to_8_bit(pixels)
    with _opened(path) as image:
        plain = _plain_jpeg(path, image, upright)
        if plain is not None:
            return plain
        deep = _deep(image)
        image.load()
        if deep:
            shallow = Image.fromarray(_to_8_bit(_deep_pixels(path, image)))
        else:
            shallow = image
        if "transparency" in shallow.info or shallow.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            shallow = shallow.convert("RGBA")
            shallow = Image.alpha_composite(Image.new("RGBA", shallow.size, "white"), shallow)
        shallow = shallow if shallow.mode == "RGB" else shallow.convert("RGB")
        if notes is not None and _has_more_pages(image):
            notes[FIRST_PAGE] += 1
        return np.array(_turned(shallow, _orientation(image)) if upright else shallow)


def load_mask(path: str | Path) -> np.ndarray:
    """(H, W) bool, True where brighter than half the file's brightest value: 0/1, 0/255 and 0/65535 all work.

    Of a palette image the palette indices count. Rotated as `load_image` does. Raises ImageError.
    """
    with _opened(path) as image:
        deep = _deep(image)
        image.load()
        if deep:
            values = _deep_pixels(path, image)
            values = values if values.ndim == 2 else values.max(axis=2)
        else:
            values = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
        mask, orientation = values > values.max() / 2, _orientation(image)
        return mask if orientation == 1 else np.array(_turned(Image.fromarray(mask), orientation))


def image_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """(width, height) from the file's header, no pixel decoded; as `load_image` would return it. Raises ImageError."""
    if (pixels := _float_colour(path)) is not None:
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
            with Image.open(path) as image:
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
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise ImageError(path, f"more than {limit} megapixels; cut it into tiles") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
            ZeroDivisionError, cv2.error) as error:
        raise ImageError(path, f"broken image ({str(error).splitlines()[0] if str(error) else 'cannot be decoded'})"
                         ) from error


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


def _deep_pixels(path: str | Path, image: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, 3) of the file's own dtype, RGB, as stored (not rotated by EXIF, except a TIFF)."""
    grey = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if grey and image.format != "TIFF":
        return np.array(image)
    # OpenCV keeps deep colour, and rotates a deep TIFF correctly where Pillow 13 scrambles it
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return np.array(image)
    return pixels if pixels.ndim == 2 else pixels[:, :, 2::-1]


def _float_colour(path: str | Path) -> np.ndarray | None:
    """(H, W, 3) RGB of a TIFF of floats, which Pillow cannot open; None for any other file."""
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
        if 3 not in tags.get(TIFF_SAMPLE_FORMAT, ()) or len(tags[TIFF_BITS_PER_SAMPLE]) < 3:
            return None
        if tags[TIFF_WIDTH] * tags[TIFF_HEIGHT] > 2 * Image.MAX_IMAGE_PIXELS:
            return None
        pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error, cv2.error):
        return None
    return None if pixels is None or pixels.ndim != 3 else pixels[:, :, 2::-1]


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
