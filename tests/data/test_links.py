"""links: those that stay in a data set's folder are followed, those that lead out only with --follow_links."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from class_folder_builder import write_manifest, write_set
from data_set_builder import (
    POLYGON,
    add_photo,
    annotation,
    image,
    read_text,
    refused,
    run_coco,
    run_yolo,
    skip_reasons,
    write_json,
    write_photo,
)

import Create_yolo_csv
import process_yolo_to_classwise
from sam_lora.data.links import LINK_OUT, Links
from sam_lora.data.sources import source_files
from sam_lora.errors import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights there")
TWO_ROWS = f"0 {POLYGON}\n1 {POLYGON}\n"


def move_and_link(path: Path, target: Path) -> None:
    """Move `path` to `target` and leave a relative link in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(os.path.relpath(target, path.parent))


def yolo(root: Path) -> None:
    for seed, split in enumerate(("train", "valid")):
        add_photo(root, f"{split}/images/{split}.jpg", f"{split}/labels/{split}.txt", TWO_ROWS, seed)
    (root / "data.yaml").write_text("names: [x, y]\n")


def link_folder(name: str) -> Callable[[Path, Path], None]:
    return lambda root, store: move_and_link(root / name, store / name.replace("/", "_"))


def link_every_file(root: Path, store: Path) -> None:
    """As a snapshot in Hugging Face's cache: every file a link to a blob without a suffix."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and store not in path.parents)
    for number, path in enumerate(paths):
        move_and_link(path, store / f"{number:040x}")


LINKED = [
    pytest.param(link_folder("valid/images"), id="images/"), pytest.param(link_folder("valid/labels"), id="labels/"),
    pytest.param(link_folder("valid"), id="a split"), pytest.param(link_every_file, id="every file"),
    pytest.param(link_folder("data.yaml"), id="data.yaml"),
    pytest.param(link_folder("valid/labels/valid.txt"), id="one label file"),
]


@pytest.mark.parametrize("link", LINKED)
def test_links_that_stay_inside(tmp_path: Path, link: Callable[[Path, Path], None]):
    yolo(tmp_path / "plain")
    yolo(tmp_path / "set")
    link(tmp_path / "set", tmp_path / "set" / "store")
    columns = ["source_image", "source_split", "source_id", "mask_area", "source_digest"]
    plain, linked = (run_yolo(tmp_path / name, tmp_path / f"{name}_out")[columns] for name in ("plain", "set"))
    assert len(plain) == 4 and linked.equals(plain)


@pytest.mark.parametrize("link", LINKED)
def test_links_that_lead_out(tmp_path: Path, capsys: pytest.CaptureFixture, link: Callable[[Path, Path], None]):
    root = tmp_path / "set"
    yolo(root)
    link(root, tmp_path / "store")
    code, line = refused(capsys, process_yolo_to_classwise, "--dataset_dir", root, "--output_dir", tmp_path / "no",
                         "--num_workers", 0)
    count = 5 if link is link_every_file else 1
    assert code == 1 and f"{root}: {count} link{'s lead' if count > 1 else ' leads'} out of it, e.g. " in line
    assert f"--follow_links takes {'them' if count > 1 else 'it'}" in line and not (tmp_path / "no").exists()
    manifest = run_yolo(root, tmp_path / "out", "--follow_links")
    assert manifest.source_image.tolist() == ["train/images/train.jpg"] * 2 + ["valid/images/valid.jpg"] * 2
    assert manifest.source_split.tolist() == ["train"] * 2 + ["val"] * 2


def test_linked_photos_that_lead_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    yolo(root)
    move_and_link(root / "valid/images/valid.jpg", tmp_path / "elsewhere.jpg")
    assert len(run_yolo(root, tmp_path / "out")) == 2 and skip_reasons(tmp_path / "out") == [LINK_OUT] * 2
    assert f"note: {root}: 1 link leads out of it, e.g. valid/images/valid.jpg to " in capsys.readouterr().out
    assert len(run_yolo(root, tmp_path / "all", "--follow_links")) == 4


def test_a_photo_in_two_places_is_taken_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    add_photo(root, "all/images/a.jpg", "all/labels/a.txt", TWO_ROWS)
    (root / "train").symlink_to("all")
    add_photo(root, "pool/b.jpg", None, seed=1)
    add_photo(root, "val/images/c.jpg", "val/labels/b.txt", f"0 {POLYGON}\n", seed=2)
    (root / "val/images/b.jpg").symlink_to("../../pool/b.jpg")
    manifest = run_yolo(root, tmp_path / "out", "--class_names", "x", "y", "--no_crop")
    assert manifest[["source_image", "source_split"]].to_numpy().tolist() == [
        ["train/images/a.jpg", "train"], ["train/images/a.jpg", "train"], ["val/images/b.jpg", "val"]]
    assert "1 photos are also in other places, by links: taken once" in capsys.readouterr().out
    assert read_text(tmp_path / "out" / "background.csv").source_image.tolist() == ["val/images/c.jpg"]


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_linked_folder_of_the_same_name(tmp_path: Path, name: str):
    yolo(tmp_path / "set")
    move_and_link(tmp_path / "set/valid" / name, tmp_path / "set/store" / name)
    manifest = run_yolo(tmp_path / "set", tmp_path / "out")
    assert manifest.source_image.tolist() == ["train/images/train.jpg"] * 2 + ["valid/images/valid.jpg"] * 2
    assert skip_reasons(tmp_path / "out") == []
    (tmp_path / "set/valid/images/valid.jpg").unlink()      # its labels, in two places, are counted once
    assert len(run_yolo(tmp_path / "set", tmp_path / "again")) == 2
    assert skip_reasons(tmp_path / "again") == ["photo not found"] * 2


def test_links_that_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    yolo(root)
    (root / "valid/images/valid.jpg").unlink()
    (root / "valid/images/valid.jpg").symlink_to("gone.jpg")
    assert len(run_yolo(root, tmp_path / "out")) == 2 and skip_reasons(tmp_path / "out") == ["photo not found"] * 2
    assert "1 link leads nowhere, e.g. valid/images/valid.jpg" in capsys.readouterr().out
    (root / "valid/labels/valid.txt").unlink()
    (root / "valid/labels/valid.txt").symlink_to("valid.txt")
    code, line = refused(capsys, process_yolo_to_classwise, "--dataset_dir", root, "--output_dir", tmp_path / "no")
    assert code == 1 and "links that lead nowhere: 1, e.g. valid/labels/valid.txt" in line


def test_circles_end(tmp_path: Path):
    write_photo(tmp_path / "set/a/one.jpg")
    write_photo(tmp_path / "set/b/two.jpg", 1)
    for link, target in (("a/up", ".."), ("a/b", "../b"), ("b/a", "../a"), ("self", "self"), ("b/here", ".")):
        (tmp_path / "set" / link).symlink_to(target)
    found = source_files(tmp_path / "set", tmp_path / "out").named
    assert {PurePosixPath("a/one.jpg"), PurePosixPath("b/two.jpg")} <= {*found} and len(found) == 4
    deep = tmp_path / "deep"
    for number in range(12):  # each folder shows all others: 12! ways
        (deep / str(number)).mkdir(parents=True)
        for other in range(12):
            (deep / str(number) / f"to{other}").symlink_to(f"../{other}")
    assert sum(1 for _ in Links.below(deep).walk()) <= 1 + 12 * 17


@pytest.mark.parametrize("link", [
    pytest.param(link_folder("images"), id="images/"), pytest.param(link_folder("images/val"), id="a folder in it"),
    pytest.param(link_folder("images/val/b.jpg"), id="one photo"),
    pytest.param(lambda root, store: link_every_file(root / "images", store), id="every photo"),
])
@pytest.mark.parametrize("out", [False, True])
def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture, link: Callable[[Path, Path], None], out: bool):
    root = tmp_path / "set"
    write_photo(root / "images/train/a.jpg")
    write_photo(root / "images/val/b.jpg", 1)
    write_photo(root / "images/train/b.jpg", 2)      # of that name, but not the photo that is meant
    json = write_json(root / "a.json", [annotation(1), annotation(2)],
                      [image(1, "train/a.jpg"), image(2, "val/b.jpg")])
    link(root, tmp_path / "store" if out else root / "store")
    flags = ("--coco_json", json, "--images_dir", root)
    if not out:
        manifest = run_coco(tmp_path / "out", *flags)
        assert manifest.source_split.tolist() == ["train", "val"] and skip_reasons(tmp_path / "out") == []
        return
    try:
        run_coco(tmp_path / "out", *flags)
    except UserError as error:
        assert "out of it, e.g. images" in str(error) and "--follow_links takes" in str(error)
    else:
        assert {*skip_reasons(tmp_path / "out")} == {LINK_OUT}
        assert " out of it, e.g. images/" in capsys.readouterr().out
    manifest = run_coco(tmp_path / "all", *flags, "--follow_links")
    assert manifest.source_split.tolist() == ["train", "val"] and skip_reasons(tmp_path / "all") == []


def test_coco_photos_beside_a_linked_store(tmp_path: Path):
    """--images_dir alone does not hold the store, but the folder of the JSON file does."""
    write_photo(tmp_path / "set/images/a.jpg")
    move_and_link(tmp_path / "set/images/a.jpg", tmp_path / "set/blobs/0123")
    json = write_json(tmp_path / "set/a.json", [annotation()])
    assert len(run_coco(tmp_path / "out", "--coco_json", json, "--images_dir", tmp_path / "set/images")) == 1


@pytest.mark.parametrize("name", ["Class_x", "Class_x/masks", "Class_x/images/c0_0000.png"])
@pytest.mark.parametrize("out", [False, True])
def test_class_folders(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture, name: str, out: bool):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "processed_dataset"
    write_manifest(folder, write_set(folder, "Class_x", 0, "x", [f"c{number}.jpg" for number in range(5)]))
    move_and_link(folder / name, (tmp_path if out else folder) / "store" / "linked")
    script = Create_yolo_csv.get_args_parser().parse_args(["--num_workers", "0", "--no_split", "--output_dir", "all",
                                                           *["--follow_links"] * out])
    Create_yolo_csv.main(script)
    assert len(read_text("all/output.csv")) == 5
    if not out:
        return
    capsys.readouterr()
    if name.endswith(".png"):
        Create_yolo_csv.main(Create_yolo_csv.get_args_parser().parse_args(["--num_workers", "0", "--no_split"]))
        assert len(read_text("output.csv")) == 4
        assert f"1 link leads out of it, e.g. {name} to " in capsys.readouterr().out
    else:
        code, line = refused(capsys, Create_yolo_csv, "--num_workers", 0, "--no_split")
        assert code == 1 and f"1 link leads out of it, e.g. {name} to " in line and "--follow_links takes it" in line
        assert not (tmp_path / "output.csv").exists()


def test_notes_count(tmp_path: Path):
    notes: Counter = Counter()
    write_photo(tmp_path / "secret.jpg")
    (tmp_path / "set").mkdir()
    for name in ("a.jpg", "b.JPG"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "secret.jpg")
    links = Links.below(tmp_path / "set")
    assert source_files(tmp_path / "set", tmp_path / "out", links=links).named == []
    links.note(notes)
    assert list(notes) == [f"{tmp_path / 'set'}: 2 links lead out of it, e.g. a.jpg to {tmp_path / 'secret.jpg'}; "
                           "--follow_links takes them"]
