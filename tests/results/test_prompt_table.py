"""prompt_table.py: rows of a table of prompts, names of their outputs. Bad tables: see test_annotate.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_lora.data import imaging
from sam_lora.results.prompt_table import output_stems, read_prompt_table
from sam_lora.results.requests import PhotoFolder


def test_rows_share_images_and_number_their_objects(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        imaging.write_png(tmp_path / name, np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "p.csv").write_text('image,box,class_name\na.png,"[1,2,9,9]",x\nsub\\b.png,"[1,2,9,9]",\n'
                                    'sub/../a.png,"[3,3,8,8]",x\n')
    table = read_prompt_table(PhotoFolder(str(tmp_path), str(tmp_path / "p.csv")))
    assert table.rows_of == {"a.png": [0, 2], "sub/b.png": [1]}
    assert table.categories == {"x": 1, "object": 2}
    assert [(item.image_id, item.category_id, item.number) for item in table.objects] == [
        (1, 1, 1), (2, 2, 1), (1, 1, 2)]
    assert [item.mask_name for item in table.objects] == ["masks/a_1.png", "masks/sub/b_1.png", "masks/a_2.png"]


@pytest.mark.parametrize(("images", "stems"), [
    pytest.param(["a.jpg", "sub/a.jpg"], ["a", "sub/a"], id="folders are kept"),
    pytest.param(["a.jpg", "a.png", "A.PNG"], ["a", "a_png", "A_PNG_"], id="one stem, or one but for its case"),
    pytest.param(["train/images/a.jpg", "Images/b.jpg"], ["train/a", "b"], id="folders called images"),
    pytest.param(["a.b.jpg", "c"], ["a.b", "c"], id="dots, no suffix"),
])
def test_output_stems(images, stems):
    assert output_stems(images) == dict(zip(images, stems))


@given(st.lists(st.from_regex(r"\A(?:[ab]/|images/){0,3}[aAb_]{1,2}(?:\.png|\.jpg|\.PNG)?\Z"), unique=True))
def test_output_stems_are_different_whatever_the_images(images):
    stems = output_stems(images)
    assert list(stems) == images
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    assert not any("images" in stem.split("/")[:-1] for stem in stems.values())
