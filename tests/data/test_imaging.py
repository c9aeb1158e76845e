"""sam_lora/data/imaging.py: every kind of file becomes upright 8-bit RGB, and what is no image says so in one line."""

import pickle
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sam_lora.data import imaging
from sam_lora.data.imaging import (
    CLEAR,
    FIRST_PAGE,
    MORE_BANDS,
    ON_WHITE,
    ImageError,
    image_size,
    load_image,
    load_label_map,
    load_mask,
    write_jpeg,
    write_png,
)
from sam_lora.errors import UserError

HEIGHT, WIDTH = 40, 60


def picture() -> np.ndarray:
    """(40, 60, 3) uint8 RGB, red in its upper left corner, blue at the right edge."""
    array = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    array[:10, :20] = (250, 0, 0)
    array[:, 50:] = (0, 0, 250)
    return array


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".PNG"])
def test_lossless_formats_give_the_same_pixels(tmp_path: Path, suffix: str):
    path = tmp_path / f"größe 图{suffix}"
    Image.fromarray(picture()).save(path, lossless=True) if suffix == ".webp" else Image.fromarray(picture()).save(path)
    assert np.array_equal(load_image(path), picture())
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("options", [
    pytest.param({}, id="as Pillow writes it"), pytest.param({"quality": 30}, id="coarse"),
    pytest.param({"subsampling": 0}, id="full colour"), pytest.param({"progressive": True}, id="progressive"),
    pytest.param({"mode": "L"}, id="grey"), pytest.param({"mode": "CMYK"}, id="CMYK"),
    pytest.param({"trailing": b"\0\0"}, id="bytes behind its end"),
])
def test_a_jpeg_has_pillows_pixels_bit_for_bit(tmp_path: Path, options: dict):
    """Whichever library decodes it: most go through OpenCV."""
    options = dict(options)
    mode, trailing = options.pop("mode", "RGB"), options.pop("trailing", b"")
    soft = cv2.resize(np.random.default_rng(3).integers(0, 255, (9, 13, 3), dtype=np.uint8), (131, 87))
    Image.fromarray(soft).convert(mode).save(tmp_path / "x.jpg", **options)
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes() + trailing)
    with Image.open(tmp_path / "x.jpg") as picture:
        expected = np.array(picture.convert("RGB"))
    loaded = load_image(tmp_path / "x.jpg")
    assert loaded.dtype == np.uint8 and loaded.flags.writeable and np.array_equal(loaded, expected)


def test_a_jpeg_that_was_cut_off_is_told(tmp_path: Path):
    write_jpeg(tmp_path / "x.jpg", np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    content = (tmp_path / "x.jpg").read_bytes()
    for length in (len(content) - 2, len(content) // 2):
        (tmp_path / "x.jpg").write_bytes(content[:length])
        with pytest.raises(ImageError, match="truncated"):
            load_image(tmp_path / "x.jpg")


def test_the_content_counts_not_the_suffix(tmp_path: Path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(picture()).save(path, format="PNG")
    assert np.array_equal(load_image(path), picture())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int):
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(picture()).save(path, exif=exif(orientation))
    stored = picture()
    upright = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
               6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored)}[orientation]
    loaded = load_image(path)
    assert loaded.shape == upright.shape
    assert np.abs(loaded.astype(int) - upright).mean() < 12  # JPEG and WebP are lossy; a wrong turn is off by > 40
    assert image_size(path) == (loaded.shape[1], loaded.shape[0])
    if suffix != ".tif":
        assert load_image(path, upright=False).shape == stored.shape
        assert image_size(path, upright=False) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("where", ["before the pixels", "after the pixels"])
def test_a_png_may_say_how_it_is_turned_at_its_end(tmp_path: Path, where: str):
    path = tmp_path / "turned.png"
    Image.fromarray(picture()).save(path, exif=exif(6))
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start:start + 4], "big")
    if where == "after the pixels":
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]  # the last chunk, IEND, has 12 bytes
        path.write_bytes(data)
        assert data.index(b"IDAT") < data.index(b"eXIf")
    assert image_size(path) == (HEIGHT, WIDTH) == load_image(path).shape[:2][::-1]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_stretched_and_turned(tmp_path: Path, suffix: str, orientation: int):
    deep = np.full((HEIGHT, WIDTH), 1000, np.uint16)
    deep[:10, :20] = 3000
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(deep).save(path, exif=exif(orientation))
    expected = np.where(deep == 3000, 255, 0).astype(np.uint8)
    expected = np.rot90(expected, -1) if orientation == 6 else expected
    assert np.array_equal(load_image(path), np.dstack([expected] * 3))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_keeps_its_channels(tmp_path: Path, suffix: str):
    deep = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
    deep[..., 0] = 4095  # 12-bit red
    path = tmp_path / f"deep{suffix}"
    assert cv2.imwrite(str(path), deep[..., ::-1])
    assert load_image(path)[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("mode", "expected"), [
    pytest.param("L", [100, 100, 100], id="grey"),
    pytest.param("P", [204, 51, 0], id="palette, of the web colours"),
    pytest.param("1", [255, 255, 255], id="one bit"),
    pytest.param("CMYK", [200, 50, 0], id="CMYK"),
    pytest.param("F", [128, 128, 128], id="float, constant"),
])
def test_modes(tmp_path: Path, mode: str, expected: list[int]):
    source = Image.new("RGB", (WIDTH, HEIGHT), (200, 50, 0))
    source = {"L": Image.new("L", (WIDTH, HEIGHT), 100), "1": Image.new("1", (WIDTH, HEIGHT), 1),
              "F": Image.new("F", (WIDTH, HEIGHT), 0.25)}.get(mode) or source.convert(mode)
    path = tmp_path / "picture.tif"
    source.save(path)
    loaded = load_image(path)
    assert loaded.shape == (HEIGHT, WIDTH, 3) and loaded.dtype == np.uint8
    assert np.abs(loaded[3, 4].astype(int) - expected).max() <= 1


def test_transparency_is_laid_on_white_and_the_first_page_taken(tmp_path: Path):
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 255))
    clear.paste((9, 9, 9, 0), (0, 0, 10, 10))
    clear.save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png")[[2, 20], [2, 20]].tolist() == [[255, 255, 255], [200, 0, 0]]
    pages = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert load_image(tmp_path / "pages.tif")[0, 0].tolist() == [255, 0, 0]


def bands(count: int, kind: type = np.uint8) -> np.ndarray:
    """(HEIGHT, WIDTH, count): the picture's three, then them again; the first as bright as 8 bits can be somewhere."""
    return np.dstack([picture()] * 3)[..., :count].astype(kind)


@pytest.mark.parametrize(("count", "kind", "options", "noted"), [
    pytest.param(4, np.uint8, {"photometric": "rgb"}, MORE_BANDS, id="near-infrared that is called alpha"),
    pytest.param(4, np.uint8, {"photometric": "rgb", "extrasamples": ["unspecified"]}, MORE_BANDS, id="a fourth band"),
    pytest.param(4, np.uint8, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, MORE_BANDS,
                 id="near-infrared that is called premultiplied alpha"),
    pytest.param(5, np.uint8, {"photometric": "rgb"}, MORE_BANDS, id="five bands"),
    pytest.param(4, np.uint8, {"photometric": "minisblack"}, MORE_BANDS, id="four bands that are not called RGB"),
    pytest.param(8, np.uint8, {"photometric": "rgb"}, MORE_BANDS, id="eight bands"),
    pytest.param(4, np.uint16, {"photometric": "rgb"}, MORE_BANDS, id="16 bits"),
    pytest.param(4, np.uint16, {"photometric": "minisblack"}, MORE_BANDS, id="16 bits that are not called RGB"),
    pytest.param(3, np.uint16, {"photometric": "minisblack"}, None, id="three of 16 bits that are not called RGB"),
    pytest.param(5, np.float32, {"photometric": "minisblack"}, MORE_BANDS, id="floats"),
])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_the_first_three_bands_of_a_tiff_are_its_colours(tmp_path: Path, count, kind, options, noted, planes):
    pixels, notes = bands(count, kind), Counter()
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels,
                     planarconfig=planes, **options)
    loaded = load_image(tmp_path / "a.tif", notes=notes)
    assert np.abs(loaded.astype(int) - picture()).max() <= (0 if kind == np.uint8 else 6)   # deep ones are stretched
    assert notes == ({noted: 1} if noted else {}) and image_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint8),
                                              (".tif", np.uint16), (".webp", np.uint8)])
@pytest.mark.parametrize("clear", ["a corner", "everywhere", "nowhere"])
def test_alpha_is_laid_on_white_where_the_file_says_it_is_alpha(tmp_path: Path, suffix, kind, clear):
    top, notes = np.iinfo(kind).max, Counter()
    alpha = np.full((HEIGHT, WIDTH, 1), top, kind)
    alpha[{"a corner": np.s_[:10, :10], "everywhere": np.s_[:], "nowhere": np.s_[:0]}[clear]] = 0
    path = tmp_path / f"a{suffix}"
    pixels = np.concatenate([picture().astype(kind) * kind(top // 255), alpha], axis=2)
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
    elif suffix == ".webp":
        Image.fromarray(pixels).save(path, lossless=True, exact=True)
    else:
        assert cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3]])
    expected = picture()
    if clear == "a corner":
        expected[:10, :10] = 255
    assert np.abs(load_image(path, notes=notes).astype(int) - expected).max() <= (0 if kind == np.uint8 else 6)
    assert sum(notes.values()) == (clear != "nowhere")
    assert all(key == {"a corner": ON_WHITE, "everywhere": CLEAR}[clear] for key in notes)


def test_bands_that_no_library_reads_are_one_line(tmp_path: Path):
    tifffile.imwrite(tmp_path / "a.tif", bands(8), photometric="rgb", rowsperstrip=HEIGHT)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[content.index(struct.pack("<HHI", 259, 3, 1)) + 8] = 5     # its compression: LZW, of what is not
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match="a TIFF of 8 bands that cannot be read"):
        load_image(tmp_path / "a.tif")


def test_a_photo_over_pillow_s_limit_is_read_up_to_ours(tmp_path: Path, monkeypatch):
    """178 megapixels are Pillow's own limit; here both are small."""
    monkeypatch.setattr(imaging, "MAX_PIXELS", WIDTH * HEIGHT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_png(tmp_path / "a.png", picture())
    assert np.array_equal(load_image(tmp_path / "a.png"), picture()) and Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(imaging, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ImageError, match="more than 0 megapixels"):
        load_image(tmp_path / "a.png")


def label_map(values: Sequence[int], kind: type = np.uint8) -> np.ndarray:
    """A column of WIDTH // 12 pixels for each value, ground between them."""
    numbers = np.zeros((HEIGHT, WIDTH), kind)
    for place, value in enumerate(values):
        numbers[5:35, place * 5:place * 5 + 4] = value
    return numbers


@pytest.mark.parametrize(("values", "kind"), [
    pytest.param(range(1, 11), np.uint8, id="cells"),
    pytest.param((1, 2), np.uint8, id="two classes"),
    pytest.param((3, 17, 18, 40), np.uint8, id="what a crop left of more"),
    pytest.param((1, 2, 255), np.uint8, id="VOC, whose 255 belongs to none"),
    pytest.param(range(1, 12), np.uint16, id="16 bits"),
    pytest.param((300, 301), np.uint16, id="16 bits, two of many"),
])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_label_map_is_no_mask(tmp_path: Path, values, kind, suffix):
    numbers = label_map(values, kind)
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, numbers) if suffix == ".tif" else Image.fromarray(numbers).save(path)
    objects = [value for value in values if value != 255]
    with pytest.raises(ImageError, match=f"a label map of {len(objects)} objects or classes.*--split_label_maps"):
        load_mask(path)
    found = load_label_map(path)
    assert list(found) == objects and all(np.array_equal(found[value], numbers == value) for value in objects)


def test_a_label_map_of_hundreds_is_no_mask(tmp_path: Path):
    numbers = np.kron(np.arange(1, 401, dtype=np.uint16).reshape(20, 20), np.ones((6, 6), np.uint16))
    numbers[::6] = numbers[:, ::6] = 0
    Image.fromarray(numbers).save(tmp_path / "a.png")
    assert list(load_label_map(tmp_path / "a.png")) == list(range(1, 401))
    Image.fromarray((numbers // 2).astype(np.uint8)).save(tmp_path / "b.png")
    assert list(load_label_map(tmp_path / "b.png")) == list(range(1, 201))


def test_a_palette_s_indices_number_objects_too(tmp_path: Path):
    image = Image.fromarray(label_map((1, 2, 255)), "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(tmp_path / "voc.png")
    assert list(load_label_map(tmp_path / "voc.png")) == [1, 2]


@pytest.mark.parametrize("values", [(1,), (128, 255), (64, 127, 255), (64, 127, 191, 255), tuple(range(20, 256, 20)),
                                    (200,), (7, 250, 253)])
def test_a_mask_with_a_smooth_edge_is_one_object(tmp_path: Path, values):
    Image.fromarray(label_map(values)).save(tmp_path / "a.png")
    assert load_label_map(tmp_path / "a.png") == {}
    assert np.array_equal(load_mask(tmp_path / "a.png"), label_map(values) > max(values) / 2)


@pytest.mark.parametrize("radius", [120, 40, 15])
@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint8, 200), (np.uint16, 65535), (np.uint16, 4095)])
def test_a_blurred_mask_has_every_value_and_is_one_object(tmp_path: Path, kind, top, radius):
    disc = np.zeros((300, 300), np.float32)
    cv2.circle(disc, (150, 150), radius, 1, -1)
    soft = cv2.GaussianBlur(disc, (0, 0), 12)
    soft = (soft / soft.max() * top).astype(kind)
    assert len(np.unique(soft)) > 0.6 * min(top, 256)
    Image.fromarray(soft).save(tmp_path / "a.png")
    assert np.array_equal(load_mask(tmp_path / "a.png"), soft > soft.max() / 2)


def cut_off(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(("make", "said"), [
    pytest.param(lambda path: None, "no such file", id="missing"),
    pytest.param(lambda path: path.mkdir(), "is a folder", id="folder"),
    pytest.param(lambda path: path.write_bytes(b""), "empty file", id="empty"),
    pytest.param(lambda path: path.write_text("<html>not found</html>"), "not an image", id="a web page"),
    pytest.param(cut_off, "broken image", id="truncated"),
    pytest.param(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), "image", id="broken PNG"),
])
@pytest.mark.parametrize("load", [load_image, load_mask])
def test_what_is_no_image_is_one_line(tmp_path: Path, make, said: str, load):
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(ImageError, match=said) as caught:
        load(path)
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), caught.value.reason)


@pytest.mark.parametrize(("values", "kind"), [
    pytest.param((0, 1), np.uint8, id="0 and 1"),
    pytest.param((0, 255), np.uint8, id="0 and 255"),
    pytest.param((0, 65535), np.uint16, id="16 bit"),
    pytest.param((3, 250), np.uint8, id="noise around both"),
])
def test_load_mask(tmp_path: Path, values: tuple[int, int], kind: type):
    truth = picture()[..., 2] > 200
    Image.fromarray(np.where(truth, values[1], values[0]).astype(kind)).save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png")
    assert mask.dtype == bool and np.array_equal(mask, truth)


def test_load_mask_of_palette_colour_and_empty_files(tmp_path: Path):
    truth = picture()[..., 2] > 200
    palette = Image.fromarray(truth.astype(np.uint8)).convert("P")
    palette.putpalette([90, 90, 90, 0, 0, 0])  # the object darker than the ground: the index counts
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([truth * np.uint8(255)] * 3)).save(tmp_path / "colour.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "empty.png")
    assert np.array_equal(load_mask(tmp_path / "palette.png"), truth)
    assert np.array_equal(load_mask(tmp_path / "colour.png"), truth)
    assert not load_mask(tmp_path / "empty.png").any()


def test_writing(tmp_path: Path):
    mask = picture()[..., 2] > 200
    write_png(tmp_path / "new" / "图.png", picture())
    write_png(tmp_path / "mask.png", mask)
    write_jpeg(tmp_path / "a.jpg", picture())
    assert np.array_equal(load_image(tmp_path / "new" / "图.png"), picture())
    with Image.open(tmp_path / "mask.png") as written:
        assert written.mode == "L" and np.array_equal(np.array(written), mask * np.uint8(255))
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - picture()).mean() < 6
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.jpg", "mask.png", "图.png"]


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.float32), np.zeros((3, 4, 4), np.uint8)])
def test_writing_refuses_other_arrays(tmp_path: Path, array: np.ndarray):
    with pytest.raises(ValueError, match="expected"):
        write_png(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


# ---- what exporters, microscopes and vandals write --------------------------------------------------------

def ramp(kind: type, channels: int, top: float) -> np.ndarray:
    """(40, 60) or (40, 60, channels) from 0 at the left to `top` at the right; colours differ by a factor."""
    row = np.linspace(0, top, WIDTH)
    if channels == 1:
        return np.tile(row, (HEIGHT, 1)).astype(kind)
    factors = (1, 0.5, 0.25, 1)[:channels]
    return np.stack([np.tile(row * factor, (HEIGHT, 1)) for factor in factors], axis=2).astype(kind)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize(("kind", "channels", "top"), [
    pytest.param(np.float32, 1, 3.0, id="float grey"), pytest.param(np.float32, 3, 3.0, id="float RGB"),
    pytest.param(np.float64, 3, 3e9, id="double RGB"), pytest.param(np.uint16, 1, 4000, id="16-bit grey"),
    pytest.param(np.uint16, 3, 4000, id="16-bit RGB"), pytest.param(np.uint16, 4, 4000, id="16-bit RGBA"),
    pytest.param(np.uint8, 1, 255, id="grey"), pytest.param(np.uint8, 3, 255, id="RGB")])
def test_every_depth_becomes_8_bit_rgb(tmp_path: Path, kind: type, channels: int, top: float, suffix: str):
    pixels = ramp(kind, channels, top)
    if channels == 4:
        pixels[..., 3] = 65535
    path = tmp_path / f"ramp{suffix}"
    if np.dtype(kind).kind == "f" and suffix == ".png":
        pytest.skip("PNG has no floats")
    plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if suffix == ".tif" else []  # OpenCV 4.11 else writes floats as LogLuv
    assert cv2.imwrite(str(path), pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]], plain)
    loaded = load_image(path)
    assert loaded.shape == (HEIGHT, WIDTH, 3) and loaded.dtype == np.uint8
    assert image_size(path) == (WIDTH, HEIGHT)
    assert np.abs(loaded[20, :, 0] - np.linspace(0, 255, WIDTH)).max() <= 3
    assert (loaded[20, 5:, 0] > loaded[20, 5:, 1]).all() == (channels > 1)


def test_several_pages_are_noted_and_a_phone_preview_is_not(tmp_path: Path):
    pages = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    notes = Counter()
    for name, kind in (("a.tif", "TIFF"), ("a.webp", "WEBP"), ("a.gif", "GIF"), ("a.png", "PNG"), ("a.jpg", "MPO")):
        pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:])
        assert np.abs(load_image(tmp_path / name, notes=notes)[5, 5].astype(int) - (255, 0, 0)).max() < 5
    assert notes == {FIRST_PAGE: 4}
    load_image_of_one = tmp_path / "one.tif"
    pages[0].save(load_image_of_one)
    load_image(load_image_of_one, notes=notes)
    assert sum(notes.values()) == 4


def bomb(width: int, height: int) -> bytes:
    """A PNG of fifty bytes that claims to be of any size."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("content", "said"), [
    pytest.param(bomb(60000, 60000), "megapixels", id="decompression bomb"),
    pytest.param(bomb(2**31 - 1, 2**31 - 1), "megapixels", id="the largest size a PNG can claim"),
    pytest.param(bomb(0, 5), "image", id="no width"),
    pytest.param(bomb(60, 40), "broken", id="no pixels"),
    pytest.param(b"II*\0\xff\xff\xff\xff", "image", id="TIFF whose tags are past its end"),
    pytest.param(b"II*\0\x08\0\0\0" + b"\xff" * 40, "image", id="TIFF of nonsense tags"),
    pytest.param(b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + b"\0" * 9, "image", id="JPEG that is EXIF only"),
])
def test_hostile_pictures_are_one_line(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (load_image, load_mask):
        with pytest.raises(ImageError, match=said):
            read(path)


@pytest.mark.parametrize("suffix", [
    ".jpg", ".png", ".tif", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".tga",
    pytest.param(".avif", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF"))])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_picture_loads_or_says_so(tmp_path: Path, suffix: str, data: st.DataObject):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content) - 1, 400)), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[:data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        loaded = load_image(path)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.ndim == 3 and loaded.shape[2] == 3 and loaded.dtype == np.uint8
