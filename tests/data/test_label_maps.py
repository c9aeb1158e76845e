"""label_maps.py: label maps among a user's own masks become a mask for each object."""

from pathlib import Path

import numpy as np
import pytest
from class_folder_builder import BAR, write_image, write_mask
from data_set_builder import files_in
from PIL import Image

from sam_lora.data.imaging import load_mask
from sam_lora.data.label_maps import split_label_maps
from sam_lora.errors import UserError

NUMBERS = np.zeros((24, 40), np.uint8)
NUMBERS[2:10, 2:10], NUMBERS[2:10, 20:30], NUMBERS[14:20, 5:35] = 1, 2, 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A class folder with a label map, a mask of one object, and something that is no image."""
    folder = tmp_path / "Class_cell"
    for seed, name in enumerate(("a", "b")):
        write_image(folder / "images" / f"{name}.png", seed)
    (folder / "masks").mkdir()
    Image.fromarray(NUMBERS).save(folder / "masks" / "a.png")
    write_mask(folder / "masks" / "b.png", BAR)
    (folder / "masks" / "c.png").write_text("no image")
    return folder


def test_a_mask_for_each_number(tmp_path, folder):
    original = (folder / "masks/a.png").read_bytes()
    assert split_label_maps(tmp_path) == (1, 3)
    assert files_in(folder) == sorted(["images/a.png", "images/b.png", "label_maps/a.png", "masks/a_0001.png",
                                       "masks/a_0002.png", "masks/a_0005.png", "masks/b.png", "masks/c.png"])
    for value in (1, 2, 5):
        assert np.array_equal(load_mask(folder / f"masks/a_000{value}.png"), value == NUMBERS)
    assert (folder / "label_maps/a.png").read_bytes() == original
    assert split_label_maps(tmp_path) == (0, 0)


def test_a_stopped_run_goes_on_and_nothing_of_the_user_s_is_replaced(tmp_path, folder):
    write_mask(folder / "masks/a_0002.png", NUMBERS == 2)     # as a run that was stopped left it
    assert split_label_maps(tmp_path) == (1, 3)
    Image.fromarray(NUMBERS).save(folder / "masks" / "a.png")
    with pytest.raises(UserError, match="label_maps/a.png: already there, expected none"):
        split_label_maps(tmp_path)
    (folder / "label_maps/a.png").unlink()
    write_mask(folder / "masks/a_0002.png", BAR)
    with pytest.raises(UserError, match="a_0002.png: already there, expected none"):
        split_label_maps(tmp_path)
    assert np.array_equal(load_mask(folder / "masks/a_0002.png"), BAR) and (folder / "masks/a.png").is_file()
