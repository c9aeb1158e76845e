"""table_iou.py: the rows of a table that an export is measured on. The IoU itself: test_int8.py."""

import pytest
from conftest import make_crops

from sam_lora.errors import UserError
from sam_lora.export import table_iou


def test_a_long_table_is_thinned(tmp_path, monkeypatch):
    crops = make_crops(tmp_path)
    monkeypatch.setattr(table_iou, "TABLE_ROWS", 3)
    rows = table_iou.read_rows(crops.train_csv)
    assert [row.image.name for row in rows] == [f"photo{number}_0001.png" for number in (0, 2, 5)]


def test_a_table_whose_rows_have_no_label_is_refused(crops):
    lines = crops.test_csv.read_text().splitlines()
    cells = lines[1].split(",", 2)
    crops.test_csv.write_text("\n".join([lines[0], ",".join([cells[0], "", cells[2]]), *lines[2:]]))
    with pytest.raises(UserError, match="1 of 6 rows cannot be used: row 2: no label"):
        table_iou.read_rows(crops.test_csv)
