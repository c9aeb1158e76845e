from pathlib import Path, PurePosixPath

from sam_lora.data.sources import source_files


def test_source_files_leave_out_what_is_no_source(tmp_path: Path):
    for name in ("a.JPG", "sub/b.png", ".hidden/c.png", "sub/.d.png", "notes.md", "out/Class_x/images/e.png",
                 "old/instances.csv", "old/Class_x/images/f.png", "labels/a.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "inside.png").symlink_to(tmp_path / "in" / "a.JPG")
    found = source_files(tmp_path / "in", tmp_path / "in" / "out").named
    assert found == [PurePosixPath(name) for name in ("a.JPG", "inside.png", "sub/b.png")]
    assert PurePosixPath("labels/a.txt") in source_files(tmp_path / "in", tmp_path, (".txt",)).named
