"""Features of the frozen part: equal to the encoder's, found again, checked, and computed anew where they are lost."""

import contextlib
import shutil
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import points_text, random_sam

from sam_lora.data.imaging import ImageError
from sam_lora.data.samples import read_samples
from sam_lora.errors import UserError
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.model.checkpoints import prepare_for_training
from sam_lora.model.encode import encode_frozen, encode_rest, image_embeddings, preprocess
from sam_lora.results import evaluation
from sam_lora.training import feature_cache
from sam_lora.training.feature_cache import FeatureCache

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


def make_cache(sam, folder: Path | None, /, **changes) -> FeatureCache:
    settings = {"sam": sam, "blocks": 2, "base_sha256": "a" * 64, "device": CPU, "autocast": contextlib.nullcontext(),
                "precision": "fp32", "stored_as": "fp32", "ram_bytes": 10**9, "folder": folder}
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


def loader(table: Path, sizes=None, batch_size: int = 2):
    return make_loader(PromptedImages(read_samples(table), SIDE, 8, True, True, sizes), SIDE, batch_size, 0, False)


def embeddings(sam, cache: FeatureCache | None, table: Path, sizes=None) -> torch.Tensor:
    """(images, C, h, w) in the table's order."""
    found = batches(loader(table, sizes))
    with torch.no_grad():
        return torch.cat([image_embeddings(sam, batch) for batch in (cache.attach(found) if cache else found)])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.features"))


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

@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize(("ram_bytes", "on_disk"), [
    pytest.param(10**9, False, id="all in memory, no folder"), pytest.param(0, True, id="all on disk"),
    pytest.param(2 * ENTRY_BYTES, True, id="two in memory"), pytest.param(2 * ENTRY_BYTES, False, id="three nowhere")])
def test_embeddings_are_those_of_the_encoder(sam, photos, tmp_path, blocks, ram_bytes, on_disk):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept" if on_disk else None, blocks=blocks, ram_bytes=ram_bytes)
    cache.fill(photos, batch_size=2)
    assert cache.encoded == 5
    sizes = cache.sizes(photos)
    expected = embeddings(sam, None, table)
    for _ in range(2):
        torch.testing.assert_close(embeddings(sam, cache, table, sizes), expected, rtol=1e-5, atol=1e-5)
    everything_kept = on_disk or ram_bytes == 10**9
    assert cache.encoded == 5 if everything_kept else cache.encoded > 5
    assert (sizes == dict(zip(photos, SIZES_HW))) == everything_kept
    assert (len(entries(tmp_path / "kept")) == 5) == on_disk


@pytest.mark.parametrize(("stored_as", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_takes_half_the_disk_and_is_near(sam, photos, tmp_path, stored_as, tolerance):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept", stored_as=stored_as, ram_bytes=0)
    cache.fill(photos, 4)
    assert all(ENTRY_BYTES / 2 < path.stat().st_size < ENTRY_BYTES / 2 + 300 for path in entries(tmp_path / "kept"))
    exact, found = embeddings(sam, None, table), embeddings(sam, cache, table, cache.sizes(photos))
    assert 0 < (found - exact).abs().max() < tolerance * exact.abs().max()


def test_features_beyond_fp16_are_an_error_not_infinities(photos, tmp_path):
    loud = random_sam("vit_mini", SIDE)
    with torch.no_grad():
        loud.image_encoder.pos_embed.mul_(1e6)
    with pytest.raises(UserError, match="--cache_precision fp16: .*give bf16 or fp32"):
        make_cache(loud, None, stored_as="fp16").fill(photos, 2)
    make_cache(loud, None, stored_as="bf16").fill(photos, 2)


def test_predictions_are_the_same_from_features(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept", ram_bytes=0)
    cache.fill(photos, 2)
    with_features = cache.attach(batches(loader(table, cache.sizes(photos))))
    plain, found = (sorted(evaluation.predict(sam, some, CPU, contextlib.nullcontext()), key=lambda one: one.row)
                    for some in (batches(loader(table)), with_features))
    assert [one.row for one in found] == [one.row for one in plain] == list(range(6))
    assert any(one.mask.any() for one in plain)
    for one, other in zip(plain, found):
        assert np.array_equal(one.mask, other.mask) and np.array_equal(one.truth, other.truth)
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-5)


def test_entries_computed_during_validation_can_be_trained_on(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, None)
    list(evaluation.predict(sam, cache.attach(batches(loader(table))), CPU, contextlib.nullcontext()))
    assert cache.encoded == 5
    for batch in cache.attach(batches(loader(table))):
        image_embeddings(sam, batch).sum().backward()
    assert cache.encoded == 5
    sam.zero_grad(set_to_none=True)


# ---- found again, or not ----------------------------------------------------------------------------------------

def test_another_run_reads_what_the_first_one_wrote(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    first = make_cache(sam, tmp_path / "kept")
    first.fill([*photos, *photos], 2)
    expected = embeddings(sam, first, table)
    for ram_bytes in (0, 10**9):
        again = make_cache(sam, tmp_path / "kept", ram_bytes=ram_bytes)
        again.fill(photos, 2)
        assert torch.equal(embeddings(sam, again, table, again.sizes(photos)), expected)
        assert again.encoded == 0 and not again.take_notes()


def test_a_renamed_image_and_a_copy_need_no_new_entry(sam, photos, tmp_path):
    make_cache(sam, tmp_path / "kept").fill(photos, 2)
    moved, copy = tmp_path / "photos" / "other name.png", tmp_path / "copy.png"
    shutil.copy(photos[1], copy)
    photos[0].rename(moved)
    cache = make_cache(sam, tmp_path / "kept")
    cache.fill([moved, copy, photos[1]], 2)
    assert cache.encoded == 0 and cache.key(copy) == cache.key(photos[1]) != cache.key(moved)
    alone = make_cache(sam, None)
    alone.fill([copy, photos[1]], 2)
    assert alone.encoded == 1


def test_the_key_changes_with_everything_that_shapes_features(sam, photos, tmp_path):
    other_size = random_sam("vit_mini", 128)
    caches = [make_cache(sam, None, **changes) for changes in (
        {}, {"base_sha256": "b" * 64}, {"blocks": 0}, {"blocks": 3}, {"sam": other_size}, {"precision": "bf16"},
        {"stored_as": "fp16"})]
    keys = [cache.key(photos[0]) for cache in caches]
    spoilt = bytearray(photos[0].read_bytes())
    spoilt[-20] ^= 1
    (tmp_path / "spoilt.png").write_bytes(spoilt)
    keys.append(caches[0].key(tmp_path / "spoilt.png"))
    assert len(set(keys)) == len(keys) == 8 and make_cache(sam, tmp_path).key(photos[0]) == keys[0]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    pytest.param(flip_a_bit, id="one bit"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-7]), id="cut short"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.write_bytes(b"\x80\x04" * 900), id="something else"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b"[4, 4, 160]", b"[4, 8, 080]")),
                 id="another shape"),
    pytest.param(lambda path: shutil.copy(entries(path.parent)[1], path), id="another image's"),
])
@pytest.mark.parametrize("ram_bytes", [0, 10**9])
def test_damage_is_noticed_told_once_and_repaired(sam, photos, tmp_path, damage, ram_bytes):
    table = write_table(photos, tmp_path)
    make_cache(sam, tmp_path / "kept").fill(photos, 2)
    expected = embeddings(sam, None, table)
    victim = entries(tmp_path / "kept")[0]
    whole = victim.read_bytes()
    damage(victim)
    assert victim.read_bytes() != whole
    cache = make_cache(sam, tmp_path / "kept", ram_bytes=ram_bytes)
    cache.fill(photos, 2)
    for _ in range(2):
        torch.testing.assert_close(embeddings(sam, cache, table, cache.sizes(photos)), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 1
    assert cache.take_notes() == [f"{tmp_path / 'kept'}: 1 damaged entries, their features were computed anew"]
    assert cache.take_notes() == []
    assert len(victim.read_bytes()) == len(whole)
    again = make_cache(sam, tmp_path / "kept", ram_bytes=0)
    embeddings(sam, again, table)
    assert again.encoded == 0


def test_the_folder_may_go_between_epochs(sam, photos, tmp_path):
    table = write_table(photos, tmp_path)
    cache = make_cache(sam, tmp_path / "kept", ram_bytes=2 * ENTRY_BYTES)
    cache.fill(photos, 2)
    sizes, expected = cache.sizes(photos), embeddings(sam, None, table)
    shutil.rmtree(tmp_path / "kept")
    torch.testing.assert_close(embeddings(sam, cache, table, sizes), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 + 3 and len(entries(tmp_path / "kept")) == 3
    torch.testing.assert_close(embeddings(sam, cache, table, sizes), expected, rtol=1e-5, atol=1e-5)
    assert cache.encoded == 5 + 3 and not cache.take_notes()


def test_a_full_disk_ends_the_writing_not_the_run(sam, photos, tmp_path, monkeypatch):
    table = write_table(photos, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**29, 2**29))
    cache = make_cache(sam, tmp_path / "kept", ram_bytes=ENTRY_BYTES)
    cache.fill(photos, 2)
    assert len(cache.sizes(photos)) == 1 and not entries(tmp_path / "kept")
    torch.testing.assert_close(embeddings(sam, cache, table, cache.sizes(photos)), embeddings(sam, None, table),
                               rtol=1e-5, atol=1e-5)
    notes = cache.take_notes()
    assert len(notes) == 1 and "less than 1 GB free" in notes[0] and str(tmp_path / "kept") in notes[0]


def test_a_folder_that_is_a_file_is_told_and_left_alone(sam, photos, tmp_path):
    (tmp_path / "kept").write_text("mine")
    cache = make_cache(sam, tmp_path / "kept", ram_bytes=0)
    cache.fill(photos, 2)
    assert len(cache.take_notes()) == 1 and (tmp_path / "kept").read_text() == "mine" and cache.sizes(photos) == {}


def test_a_broken_image_is_named(sam, photos, tmp_path):
    photos[2].write_bytes(photos[2].read_bytes()[:150])
    with pytest.raises(ImageError, match=r"2\.png: broken image"):
        make_cache(sam, tmp_path / "kept").fill(photos, 2)
    assert not list((tmp_path / "kept").glob(".partial-*"))
