"""JPEGs by another name, other kinds of photos, and files that only look like them: in both converters and folders."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_set_builder import POLYGON, WIDTH, add_photo, annotation, image, run_coco, run_yolo, write_json, write_photo
from PIL import Image, features

from sam_lora.data.imaging import ImageError, heic_opens, load_image
from sam_lora.errors import UserError
from sam_lora.results.find_photos import photos_below

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
KINDS = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.MPO": "MPO", "d.Jpeg": "JPEG", "e.JPG": "JPEG", "f.PnG": "PNG",
         "g.TIF": "TIFF", "h.gif": "GIF", "i.jp2": "JPEG2000", "j.ppm": "PPM", "k.Webp": "WEBP"}
if features.check("avif"):
    KINDS["l.AVIF"] = "AVIF"
UNREADABLE = {"m.heic": (HEIC, "HEIC, which Pillow opens only with the package pillow-heif"),
              "n.HEIF": (HEIC, "HEIC, which Pillow opens only with the package pillow-heif"),
              "o.jpe": (POINTER, "only a pointer of Git LFS, not the photo"), "p.jfif": (b"", "empty file"),
              "q.avif": (b"<html>", "not an image that can be read")}


def write_kinds(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, (name, kind) in enumerate(KINDS.items()):
        write_photo(folder / "source.png", seed)
        with Image.open(folder / "source.png") as photo:
            more = {"save_all": True, "append_images": [photo.copy()]} if kind == "MPO" else {}
            photo.save(folder / name, kind, **more)
    (folder / "source.png").unlink()


def write_unreadable(folder: Path) -> None:
    for name, (content, _) in UNREADABLE.items():
        (folder / name).write_bytes(content)


def reasons(out: Path) -> dict[str, str]:
    """{photo's or label file's stem: detail} of what could not be read."""
    report = pd.read_csv(out / "conversion_report.csv", keep_default_na=False)
    assert {*report.reason} == {"photo cannot be read"}
    return dict(zip(report.source_id, report.detail))


@pytest.mark.skipif(heic_opens(), reason="HEIC is readable here")
def test_yolo(tmp_path: Path):
    root = tmp_path / "set"
    write_kinds(root / "images")
    write_unreadable(root / "images")
    (root / "labels").mkdir()
    for name in (*KINDS, *UNREADABLE):
        (root / "labels" / f"{name[0]}.txt").write_text(f"0 {POLYGON}\n")
    manifest = run_yolo(root, tmp_path / "out", "--class_names", "x")
    assert manifest.source_image.tolist() == [f"images/{name}" for name in KINDS]
    found = reasons(tmp_path / "out")
    assert {place: reason in found[f"labels/{place[0]}.txt:1"] for place, (_, reason) in UNREADABLE.items()} \
        == dict.fromkeys(UNREADABLE, True) and len(found) == len(UNREADABLE)


@pytest.mark.skipif(heic_opens(), reason="HEIC is readable here")
def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    write_kinds(root / "images")
    write_unreadable(root / "images")
    (root / "images/k.Webp").rename(root / "images/no suffix")
    (root / "images/j.ppm").rename(root / "images/j.data")
    (root / "images/not named.mov").write_bytes(b"x")
    names = [{"k.Webp": "no suffix", "j.ppm": "j.data", "e.JPG": "e.jpg"}.get(name, name)
             for name in (*KINDS, *UNREADABLE)]
    json = write_json(root / "a.json", [annotation(number, id=number) for number in range(len(names))],
                      [image(number, f"somewhere/{name}") for number, name in enumerate(names)])
    manifest = run_coco(tmp_path / "out", "--coco_json", json, "--images_dir", root / "images")
    assert len(manifest) == len(KINDS) and {"no suffix", "j.data", "e.JPG"} < {*manifest.source_image}
    found = reasons(tmp_path / "out")
    for number, (name, (_, reason)) in enumerate(UNREADABLE.items(), start=len(KINDS)):
        assert found[f"annotation {number}"].startswith(f"{name}: {reason}")
    printed = capsys.readouterr().out
    assert "  skipped 5: photo cannot be read, e.g. m.heic: HEIC, which Pillow opens only with" in printed
    assert "0 missing, 5 unusable" in printed and "files not taken as photos: 1 .mov\n" in printed


@pytest.mark.skipif(heic_opens(), reason="HEIC is readable here")
def test_nothing_but_heic(tmp_path: Path):
    add_photo(tmp_path / "set", "images/a.heic.png", "labels/a.txt")
    (tmp_path / "set/images/a.heic.png").rename(tmp_path / "set/images/a.HEIC")
    (tmp_path / "set/images/a.HEIC").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"nothing to convert: 1 .*cannot be read, e\.g\. HEIC, which Pillow"):
        run_yolo(tmp_path / "set", tmp_path / "out", "--class_names", "x")


def test_the_usual_kind_goes_first(tmp_path: Path):
    """Phones and converters leave a.heic beside a.jpg; the label file is that of the photo that can be read."""
    root = tmp_path / "set"
    write_photo(root / "images/a.jpg")
    (root / "images/a.heic").write_bytes(HEIC)
    (root / "images/a.npy").write_bytes(b"cache")
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text(f"0 {POLYGON}\n")
    assert run_yolo(root, tmp_path / "out", "--class_names", "x").source_image.tolist() == ["images/a.jpg"]


def test_photos_without_objects_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    write_photo(root / "images/a.jpg")
    (root / "images/b.jpe").write_bytes(POINTER)
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text(f"0 {POLYGON}\n")
    run_yolo(root, tmp_path / "out", "--class_names", "x", "--no_crop")
    assert "note: 1 photos without objects cannot be read, e.g. images/b.jpe: only a pointer" in capsys.readouterr().out


def test_a_folder_of_photos(tmp_path: Path):
    write_kinds(tmp_path / "photos")
    assert [name for _, name in photos_below(tmp_path / "photos")] == [*KINDS]
    assert all(load_image(path).shape[1] == WIDTH for path, _ in photos_below(tmp_path / "photos"))


@pytest.mark.skipif(heic_opens(), reason="HEIC is readable here")
@pytest.mark.parametrize(("name", "content", "reason"), [(name, *told) for name, told in UNREADABLE.items()])
def test_what_cannot_be_opened_says_why(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    (path, _), = photos_below(tmp_path)
    with pytest.raises(ImageError, match=reason):
        load_image(path)


def test_a_folder_without_photos(tmp_path: Path):
    (tmp_path / "a.mov").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image in it; expected files that end in \.jpg, .*\.avif"):
        photos_below(tmp_path)


def test_photos_of_prompts(infer, tmp_path: Path):
    """run_inference.py --images_dir with prompts; tools for YOLO get a PNG of what they do not read."""
    write_photo(tmp_path / "photos/source.png")
    with Image.open(tmp_path / "photos/source.png") as photo:
        photo.save(tmp_path / "photos/a.JFIF", "JPEG", quality=95)
    (tmp_path / "prompts.csv").write_text('image,box\na.JFIF,"[20,10,60,30]"\n')
    out = infer("--images_dir", tmp_path / "photos", "--prompts_csv", tmp_path / "prompts.csv", "--save_yolo")
    assert np.array_equal(load_image(out / "yolo/images/a.png"), load_image(tmp_path / "photos/a.JFIF"))
    (tmp_path / "photos/b.heic").write_bytes(HEIC)
    (tmp_path / "prompts.csv").write_text('image,box\nb.heic,"[20,10,60,30]"\n')
    if not heic_opens():
        with pytest.raises(UserError, match=r"b\.heic: HEIC, which Pillow opens only with the package pillow-heif"):
            infer("--images_dir", tmp_path / "photos", "--prompts_csv", tmp_path / "prompts.csv", "--overwrite")
