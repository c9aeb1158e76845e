"""Features of the frozen part: equal to the encoder's, read again, checked, and computed anew where they are lost."""

import contextlib
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import points_text, random_sam
from safetensors.torch import save

from sam_lora.data.imaging import ImageError, load_image
from sam_lora.data.samples import read_samples
from sam_lora.errors import UserError
from sam_lora.model.batches import Batch, PromptedImages, batches, make_loader
from sam_lora.model.checkpoints import prepare_for_training
from sam_lora.model.encode import encode_frozen, encode_rest, image_embeddings, preprocess
from sam_lora.results.predict import predict
from sam_lora.training import feature_cache
from sam_lora.training.feature_cache import FeatureCache
from sam_lora.training.precision import Precision

SIDE = 64
CPU = torch.device("cpu")
SIZES_HW = ((40, 64), (70, 33), (21, 50), (64, 96), (30, 31))
ENTRY_BYTES = 4 * 4 * 160 * 4  # of vit_mini at 64 px


@pytest.fixture(scope="module")
def sam():
    """vit_mini with LoRA in its last two blocks, whose B is not zero."""
    sam = random_sam("vit_mini", SIDE)
    prepare_for_training(sam, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["qkv"], "blocks": 2}, True)
    with torch.no_grad():
        for parameter in sam.image_encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return sam


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    rng = np.random.default_rng(3)
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{number}.png" for number in range(len(SIZES_HW))]
    for path, size in zip(paths, SIZES_HW):
        assert cv2.imwrite(str(path), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    return paths


def make_cache(sam, folder: Path, precision: str = "fp32", **changes) -> FeatureCache:
    settings = {"sam": sam, "blocks": 2, "base_sha256": "a" * 64, "stored_as": "fp32", "folder": folder,
                "precision": Precision(precision, contextlib.nullcontext(), torch.amp.GradScaler("cpu", enabled=False))}
    return FeatureCache(**settings | changes)


def write_table(photos: list[Path], tmp_path: Path) -> Path:
    """One row an image, two for the first; a mask each."""
    rows = []
    for path in [*photos, photos[0]]:
        height, width = cv2.imread(str(path)).shape[:2]
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4:height // 2, width // 3:width // 3 + 9] = 255
        label = tmp_path / f"{path.stem}_mask.png"
        assert cv2.imwrite(str(label), mask)
        rows.append({"image": str(path), "label": str(label), "points": points_text(mask)})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def load(table: Path, cache: FeatureCache | None = None, num_workers: int = 0) -> Iterator[Batch]:
    """The table in batches of two, with features where `cache` has them."""
    images = PromptedImages(read_samples(table), SIDE, 8, True, True, cache.files if cache else None)
    loaded = batches(make_loader(images, SIDE, 2, num_workers, pin_memory=False))
    return cache.complete(loaded) if cache else loaded


def embeddings(sam, cache: FeatureCache | None, table: Path, num_workers: int = 0) -> torch.Tensor:
    """(images, C, h, w) in the table's order."""
    with torch.no_grad():
        return torch.cat([image_embeddings(sam, batch) for batch in load(table, cache, num_workers)])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The image files that are decoded in this process, one after the other."""
    paths = []
    monkeypatch.setattr("sam_lora.model.batches.load_image", lambda path: paths.append(path) or load_image(path))
    return paths


# ---- the two parts of the encoder -------------------------------------------------------------------------------

@pytest.mark.parametrize("blocks", [0, 1, 2, 6])
def test_the_two_parts_are_the_encoder(sam, blocks):
    pixels = preprocess(torch.randint(0, 255, (2, 3, SIDE, SIDE), dtype=torch.uint8),
                        torch.tensor([[40, 64], [64, 20]]), sam)
    with torch.no_grad():
        features = encode_frozen(sam, pixels, blocks)
        assert features.shape == ((2, 128, 4, 4) if blocks == 0 else (2, 4, 4, 160))
        torch.testing.assert_close(encode_rest(sam, features, blocks), sam.image_encoder(pixels), rtol=0, atol=0)


def test_what_comes_before_the_trained_blocks_does_not_depend_on_them(sam):
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert not encode_frozen(sam, pixels, 2).requires_grad and encode_frozen(sam, pixels, 1).requires_grad


# ---- what comes out ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("blocks", [0, 2])
def test_embeddings_are_those_of_the_encoder_and_nothing_is_decoded_again(sam, photos, tmp_path, blocks, num_workers,
                                                                          decoded):
    table = write_table(photos, tmp_path)
    expected = embeddings(sam, None, table)
    cache = make_cache(sam, tmp_path / "kept", blocks=blocks)
    cache.fill(photos, batch_size=2)
    assert cache.encoded == 5 and len(entries(tmp_path / "kept")) == 5
    decoded.clear()
    for _ in range(2):
        torch.testing.assert_close(embeddings(sam, cache, table, num_workers), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 and not decoded


def test_sizes_come_from_the_entries(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    plain, kept = (list(load(table, one)) for one in (None, cache))
    assert [batch.original_sizes for batch in kept] == [batch.original_sizes for batch in plain]
    assert all(torch.equal(one.input_sizes, other.input_sizes) and torch.equal(one.targets, other.targets)
               and torch.equal(one.prompts.point_coords, other.prompts.point_coords) for one, other in zip(plain, kept))


@pytest.mark.parametrize(("stored_as", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_takes_half_the_disk_and_is_near(sam, photos, tmp_path, stored_as, tolerance):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept", stored_as=stored_as)
    cache.fill(photos, 4)
    assert all(ENTRY_BYTES / 2 < path.stat().st_size < ENTRY_BYTES / 2 + 500 for path in entries(tmp_path / "kept"))
    exact, rounded = embeddings(sam, None, table), embeddings(sam, cache, table)
    assert 0 < (rounded - exact).abs().max() < tolerance * exact.abs().max()


def test_features_beyond_fp16_are_an_error_not_infinities(photos, tmp_path):
    loud = random_sam("vit_mini", SIDE)
    with torch.no_grad():
        loud.image_encoder.pos_embed.mul_(1e6)
    with pytest.raises(UserError, match="--cache_precision fp16: .*give bf16 or fp32"):
        make_cache(loud, tmp_path / "fp16", stored_as="fp16").fill(photos, 2)
    make_cache(loud, tmp_path / "bf16", stored_as="bf16").fill(photos, 2)


def test_predictions_are_the_same_from_features(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    plain, kept = (sorted(predict(sam, load(table, one), contextlib.nullcontext()),
                          key=lambda prediction: prediction.row) for one in (None, cache))
    assert [one.row for one in kept] == [one.row for one in plain] == list(range(6))
    assert any(one.mask.any() for one in plain)
    for one, other in zip(plain, kept):
        assert np.array_equal(one.mask, other.mask) and np.array_equal(one.truth, other.truth)
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-5)


def test_entries_computed_during_validation_can_be_trained_on(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    shutil.rmtree(tmp_path / "kept")
    list(predict(sam, load(table, cache), contextlib.nullcontext()))
    assert cache.encoded == 5 + 5
    for batch in load(table, cache):
        image_embeddings(sam, batch).sum().backward()
    assert cache.encoded == 5 + 5
    sam.zero_grad(set_to_none=True)


# ---- read again, or not -----------------------------------------------------------------------------------------

def test_another_run_reads_what_the_first_one_wrote(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    first = make_cache(sam, tmp_path / "kept")
    first.fill([*photos, *photos], 2)
    expected = embeddings(sam, first, table)
    again = make_cache(sam, tmp_path / "kept")
    again.fill(photos, 2)
    assert torch.equal(embeddings(sam, again, table), expected)
    assert first.encoded == 5 and again.encoded == 0 and not again.take_notes()


def test_a_renamed_image_and_a_copy_need_no_new_entry(sam, photos, tmp_path):
    make_cache(sam, tmp_path / "kept").fill(photos, 2)
    moved, copy = tmp_path / "photos" / "other name.png", tmp_path / "copy.png"
    shutil.copy(photos[1], copy)
    photos[0].rename(moved)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill([moved, copy, photos[1]], 2)
    assert cache.encoded == 0 and cache.key(copy) == cache.key(photos[1]) != cache.key(moved)
    alone = make_cache(sam, tmp_path / "alone")
    alone.fill([copy, photos[1]], 2)
    assert alone.encoded == 1


def test_the_key_changes_with_everything_that_shapes_features(sam, photos, tmp_path):
    other_size = random_sam("vit_mini", 128)
    caches = [make_cache(**{"sam": sam} | changes, folder=tmp_path) for changes in (
        {}, {"base_sha256": "b" * 64}, {"blocks": 0}, {"blocks": 3}, {"sam": other_size}, {"precision": "bf16"},
        {"stored_as": "fp16"})]
    keys = [cache.key(photos[0]) for cache in caches]
    spoilt = bytearray(photos[0].read_bytes())
    spoilt[-20] ^= 1
    (tmp_path / "spoilt.png").write_bytes(spoilt)
    keys.append(caches[0].key(tmp_path / "spoilt.png"))
    assert len(set(keys)) == len(keys) == 8 and make_cache(sam, tmp_path / "other").key(photos[0]) == keys[0]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    pytest.param(flip_a_bit, id="one bit"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-7]), id="cut short"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.write_bytes(b"\x80\x04" * 900), id="something else"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b"[4,4,160]", b"[4,2,320]")),
                 id="another shape"),
    pytest.param(lambda path: path.write_bytes(re.sub(rb'"image_size":"\d', b'"image_size":"9', path.read_bytes())),
                 id="another image size"),
    pytest.param(lambda path: path.write_bytes(save({"other": torch.ones(9)})), id="another program's"),
    pytest.param(lambda path: shutil.copy(entries(path.parent)[1], path), id="another image's"),
])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_is_noticed_reported_once_and_repaired(sam, photos, tmp_path, damage, num_workers):
    table = write_table(photos, tmp_path)
    make_cache(sam, tmp_path / "kept").fill(photos, 2)
    expected = embeddings(sam, None, table)
    victim = entries(tmp_path / "kept")[0]
    whole = victim.read_bytes()
    damage(victim)
    assert victim.read_bytes() != whole
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    for _ in range(2):
        torch.testing.assert_close(embeddings(sam, cache, table, num_workers), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 1
    assert cache.take_notes() == [f"{tmp_path / 'kept'}: 1 damaged entries, their features were computed anew"]
    assert cache.take_notes() == []
    assert len(victim.read_bytes()) == len(whole)
    again = make_cache(sam, tmp_path / "kept")
    again.fill(photos, 2)
    embeddings(sam, again, table)
    assert again.encoded == 0 and not again.take_notes()


def test_the_folder_may_go_between_epochs(sam, photos, tmp_path, decoded):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    expected = embeddings(sam, None, table)
    shutil.rmtree(tmp_path / "kept")
    decoded.clear()
    torch.testing.assert_close(embeddings(sam, cache, table), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 + 5 and len(entries(tmp_path / "kept")) == 5 and sorted(decoded) == photos
    torch.testing.assert_close(embeddings(sam, cache, table), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 + 5 and not cache.take_notes()


def test_entries_that_go_are_computed_anew_beside_those_that_stay(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    cache.files.path(photos[1]).unlink()
    torch.testing.assert_close(embeddings(sam, cache, table), embeddings(sam, None, table), rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 + 1 and cache.files.path(photos[1]).is_file() and not cache.take_notes()


def test_a_full_disk_ends_the_writing_not_the_run(sam, photos, tmp_path, monkeypatch):
    table = write_table(photos, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**29, 2**29))
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    assert not entries(tmp_path / "kept")
    torch.testing.assert_close(embeddings(sam, cache, table), embeddings(sam, None, table), rtol=1e-5, atol=1e-5)
    notes = cache.take_notes()
    assert len(notes) == 1 and "less than 1 GB free" in notes[0] and str(tmp_path / "kept") in notes[0]
    assert not cache.take_notes()


def test_a_folder_that_is_a_file_is_reported_and_left_alone(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    (tmp_path / "kept").write_text("mine")
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill(photos, 2)
    assert len(cache.take_notes()) == 1 and (tmp_path / "kept").read_text() == "mine"
    torch.testing.assert_close(embeddings(sam, cache, table), embeddings(sam, None, table), rtol=1e-5, atol=1e-5)


def test_a_broken_image_is_named(sam, photos, tmp_path):
    photos[2].write_bytes(photos[2].read_bytes()[:150])
    with pytest.raises(ImageError, match=r"2\.png: broken image"):
        make_cache(sam, tmp_path / "kept").fill(photos, 2)
    assert not list((tmp_path / "kept").glob(".partial-*"))
