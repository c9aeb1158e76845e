"""text_files: Unicode in all its forms, and no guesses."""

from pathlib import Path

import pytest

from sam_lora.data.text_files import read_lines, read_text
from sam_lora.errors import UserError


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["crack\nspall\n", "裂缝\n剥落\n", "é\n", "a"])
def test_unicode(tmp_path: Path, encoding: str, text: str):
    path = write(tmp_path, text.encode(encoding))
    assert read_text(path) == text and read_lines(path) == text.splitlines()


def test_an_empty_file(tmp_path: Path):
    assert read_text(write(tmp_path, b"")) == "" and read_lines(tmp_path / "names.txt") == []


def test_a_zero_byte_makes_no_utf_16(tmp_path: Path):
    assert read_lines(write(tmp_path, b"0 0.1\0 0.2 0.3 0.4\n1 ")) == ["0 0.1\0 0.2 0.3 0.4", "1 "]
    as_in_utf_16 = b"0 0.1\0 9\n1 0 0 1"      # both at the places that they have there
    assert read_lines(write(tmp_path, as_in_utf_16)) == ["0 0.1\0 9", "1 0 0 1"]


@pytest.mark.parametrize(("text", "encoding"), [
    ("fissure\nécaillage\n", "cp1252"), ("трещина\nскол\n", "koi8_r"), ("剥落\n破损\n", "gbk"),
    ("ひび\n錆\n", "shift_jis"),
])
def test_older_encodings_are_refused(tmp_path: Path, text: str, encoding: str):
    with pytest.raises(UserError, match=r"names\.txt: not UTF-8, .*save it as UTF-8"):
        read_text(write(tmp_path, text.encode(encoding)))


def test_damaged_bytes_make_no_utf_16(tmp_path: Path):
    rows = b"1 0.\xb3 0.1\0 0.2 \n1 0 0 1 0 1 1\n"
    assert len(rows) % 2 == 0 and len(read_lines(write(tmp_path, rows))) == 2
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(write(tmp_path, "一\n".encode("utf-16-le")))


def test_text_cut_off_behind_its_mark_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(write(tmp_path, "crack".encode("utf-16")[:-1]))
