import cv2
import numpy as np
import pytest

from sam_lora.data.near_duplicates import find_alike, perceptual_hashes


def photo(seed, size_hw=(90, 140)):
    """Soft blobs, as unlike one another as photos are; not square."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    return cv2.resize(noise, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def as_jpeg(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize("change", [
    pytest.param(as_jpeg, id="saved anew"),
    pytest.param(lambda image: cv2.resize(image, (61, 40), interpolation=cv2.INTER_AREA), id="smaller"),
    pytest.param(lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=25), id="paler"),
    pytest.param(lambda image: image[:, ::-1], id="mirrored"),
    pytest.param(lambda image: np.roll(image[::-1], 1, axis=1), id="upside down, shifted by a pixel"),
    pytest.param(lambda image: np.rot90(image, 3), id="turned"),
    pytest.param(lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), id="grey"),
])
def test_a_copy_looks_like_its_photo_and_no_other(change):
    photos = [perceptual_hashes(photo(seed)) for seed in range(20)]
    copies = [perceptual_hashes(np.ascontiguousarray(change(photo(seed)))) for seed in (3, 30, 11)]
    assert find_alike(copies, photos) == [(0, 3), (2, 11)]


def test_blank_images_are_like_none():
    """Else all empty tiles of an orthomosaic would be copies of each other."""
    blank = np.full((40, 30, 3), 200, np.uint8)
    assert perceptual_hashes(blank) is None
    found = [perceptual_hashes(photo(1)), None]
    assert find_alike(found, found) == [(0, 0)]
    assert find_alike([None], found) == find_alike(found, [None]) == find_alike([], found) == []


def test_more_images_than_are_compared_at_once(monkeypatch):
    monkeypatch.setattr("sam_lora.data.near_duplicates.CHUNK", 3)
    hashes = [perceptual_hashes(photo(seed)) for seed in range(8)]
    assert find_alike(hashes, hashes[::-1]) == [(index, 7 - index) for index in range(8)]
