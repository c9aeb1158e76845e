"""sam_lora/imaging.py: every kind of file becomes upright 8-bit RGB, and what is no image says so in one line."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_lora.errors import UserError
from sam_lora.imaging import ImageError, image_size, load_image, load_mask, write_jpeg, write_png

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
