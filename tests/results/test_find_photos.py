"""find_photos.py: which photos of a folder are searched. What is found in them: test_finding_objects.py."""

from pathlib import Path

import pytest

from sam_lora.errors import UserError
from sam_lora.results.find_photos import photos_below


def test_photos_below_a_folder(tmp_path: Path, capsys):
    """Of every suffix that Pillow opens, in any case, however deep; links only inside the folder."""
    folder = tmp_path / "photos"
    for name in ("b.JPG", "trip/a.png", "trip/c.avif", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "secret.jpg").touch()
    (folder / "in.jpg").symlink_to("b.JPG")
    (folder / "out.jpg").symlink_to("../secret.jpg")
    assert [name for _, name in photos_below(folder)] == ["b.JPG", "in.jpg", "trip/a.png", "trip/c.avif"]
    assert capsys.readouterr().out == f"{folder}: 1 photos are links that lead out of it, and are left out\n"


def test_a_folder_without_photos_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no image in it; expected files that end in .jpg"):
        photos_below(tmp_path)
    with pytest.raises(UserError, match="no such folder; expected a folder of photos"):
        photos_below(tmp_path / "none")
