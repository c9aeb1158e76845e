from pathlib import Path

from class_folder_builder import convert, photo, rectangle

from sam_lora import contracts
from sam_lora.data.imaging import load_image
from sam_lora.data.manifest import ManifestRow
from sam_lora.data.preview import PREVIEW_CROPS, PreviewSample
from sam_lora.data.sources import SourceObject


def test_the_sample_has_every_class_and_is_drawn_from_all_rows():
    sample = PreviewSample()
    for number in range(500):
        sample.add(ManifestRow("", f"Class_a/masks/{number}.png"))
    last = ManifestRow("", "Class_b/masks/0.png")
    sample.add(last)
    chosen = sample.rows()
    assert sample.count == 501 and len(chosen) == PREVIEW_CROPS and chosen[-1] == last
    numbers = [int(Path(row.mask_path).stem) for row in chosen[:-1]]
    assert len(set(numbers)) == len(numbers) and max(numbers) > 250  # not the first ones


def test_the_preview_is_the_same_each_time(tmp_path: Path):
    many = [SourceObject(i, f"{i}", "a", (rectangle(i, 5, i + 20, 30),)) for i in range(1, 60)]
    image = photo(tmp_path / "in", "x.png", [*many, SourceObject(99, "99", "b", (rectangle(50, 30, 90, 60),))])
    for name in ("one", "two"):
        convert([image], tmp_path / name)
    previews = [(tmp_path / name / contracts.PREVIEW_FILE).read_bytes() for name in ("one", "two")]
    assert previews[0] == previews[1]
    assert load_image(tmp_path / "one" / contracts.PREVIEW_FILE).shape[0] > 1000
