"""Building, finding, loading and downloading a SAM; batched decoding against segment_anything one at a time."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_sam
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.errors import UserError
from sam_lora.model import weights
from sam_lora.model.encode import frame_mask, preprocess
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.precision import select_device
from sam_lora.model.prompts import Prompts, decode, decode_all, postprocess_masks
from sam_lora.model.sam import build_sam, load_sam, resize_position_embeddings
from sam_lora.model.sam_types import SAM_TYPES
from sam_lora.model.torchvision_ops import nms
from sam_lora.model.weights import download, find_weights

SIDE = 256


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


def shapes(state: dict) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# ---- building and loading -----------------------------------------------------------------------------------

@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_built_types_have_the_registry_s_keys_and_shapes(model_type):
    from segment_anything import sam_model_registry
    with torch.device("meta"):
        assert shapes(build_sam(model_type).state_dict()) == shapes(sam_model_registry[model_type]().state_dict())


def test_load_sam_gives_back_the_weights_and_their_digest(mini_weights):
    sam, sha256 = load_sam("vit_mini", mini_weights)
    saved = torch.load(mini_weights, weights_only=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in sam.state_dict().items())
    assert sha256 == hashlib.sha256(mini_weights.read_bytes()).hexdigest()
    assert not sam.training


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(None, "no such file", id="missing"),
    pytest.param(b"", "cannot be read", id="empty file"),
    pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read", id="a picture"),
    pytest.param([1, 2, 3], "no plain state dict", id="a pickled list"),
    pytest.param({"model": {"weight": torch.zeros(2)}}, "no plain state dict", id="a training state"),
    pytest.param({"weight": torch.zeros(2)}, "does not fit vit_mini", id="another network"),
    pytest.param({"format": "sam-lora", "format_version": 1}, "run_inference.py", id="a LoRA checkpoint"),
    pytest.param({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, "give --model_type vit_b",
                 id="a larger SAM"),
    pytest.param({"image_encoder.pos_embed": torch.zeros(())}, "does not fit vit_mini", id="a table of 0 axes"),
])
def test_files_that_are_no_vit_mini_weights(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_sam("vit_mini", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))
    torch.save({"weight": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_sam("vit_mini", tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("image_size", [pytest.param(48, id="too small"), pytest.param(250, id="no multiple of 16")])
def test_image_sizes_that_do_not_work(mini_weights, image_size):
    with pytest.raises(UserError, match=f"--image_size {image_size}: expected a multiple of 16, at least 64"):
        load_sam("vit_mini", mini_weights, image_size)


@pytest.mark.parametrize("image_size", [128, 320])
def test_position_tables_are_interpolated_to_another_image_size(mini, image_size):
    from segment_anything.modeling.image_encoder import get_rel_pos
    target = build_sam("vit_mini", image_size)
    grid = image_size // 16
    state = mini.state_dict()
    resized = resize_position_embeddings(state, target)
    target.load_state_dict(resized)
    table = "image_encoder.blocks.0.attn.rel_pos_h"
    spread = torch.arange(grid)[:, None] - torch.arange(grid)[None] + grid - 1
    torch.testing.assert_close(resized[table][spread], get_rel_pos(grid, grid, state[table]))
    state["image_encoder.pos_embed"] = torch.full((1, 16, 16, 160), 0.25)
    constant = resize_position_embeddings(state, target)
    torch.testing.assert_close(constant["image_encoder.pos_embed"], torch.full((1, grid, grid, 160), 0.25))
    with torch.inference_mode():
        assert target.image_encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, 128, grid, grid)


def test_position_tables_that_fit_pass_untouched(mini):
    state = mini.state_dict()
    resized = resize_position_embeddings(state, build_sam("vit_mini"))
    assert resized.keys() == state.keys() and all(resized[name] is state[name] for name in state)


def test_unknown_device_is_told():
    with pytest.raises(UserError, match="--device gpu7: not available here"):
        select_device("gpu7")
    assert select_device("cpu") == torch.device("cpu")


# ---- finding and downloading ----------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 5000  # 1.28 MB, more than one read
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /weights.pth. `ranges`: honours Range; `stop_after`: bytes after which the line drops."""

    def __init__(self, ranges: bool = True, stop_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.stop_after, self.requests = ranges, stop_after, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.server.stop_after])

    def log_message(self, *_) -> None:
        pass


def partial_of(path: Path) -> Path:
    return path.with_name(f".partial-{path.name}")


def fetch(url: str, path: Path, sha256: str = SHA256) -> None:
    download(url, path, len(CONTENT), sha256)


def test_download_leaves_the_whole_file_only(tmp_path):
    path = tmp_path / "weights" / "weights.pth"
    with Server() as server:
        fetch(server.url, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [pytest.param(True, id="from where it stopped"),
                                    pytest.param(False, id="anew from a server that cannot")])
def test_download_resumes(tmp_path, ranges):
    path = tmp_path / "weights.pth"
    with Server(ranges, stop_after=300_000) as server:
        with pytest.raises(UserError, match=r"stopped at 300,000 of 1,280,000 bytes; run again to resume"):
            fetch(server.url, path)
        assert not path.exists() and partial_of(path).stat().st_size == 300_000
        server.stop_after = None
        fetch(server.url, path)
        assert server.requests == [None, "bytes=300000-"]
    assert path.read_bytes() == CONTENT
    assert not partial_of(path).exists()


def test_download_that_is_something_else_is_removed(tmp_path):
    path = tmp_path / "weights.pth"
    with Server() as server, pytest.raises(UserError, match="the download has SHA-256 .*, expected 000000000000…"):
        fetch(server.url, path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_partial_file_does_not_become_weights(tmp_path):
    path = tmp_path / "weights.pth"
    partial_of(path).write_bytes(b"x" * 100)
    with Server() as server:
        with pytest.raises(UserError, match="it was removed"):
            fetch(server.url, path)
        fetch(server.url, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("address", [pytest.param("http://127.0.0.1:9/weights.pth", id="offline"),
                                     pytest.param(None, id="not found")])
def test_without_a_download_the_error_says_what_to_do(tmp_path, address):
    path = tmp_path / "weights.pth"
    with Server() as server, pytest.raises(UserError) as error:
        address = address or server.url.replace("weights", "gone")
        fetch(address, path)
    message = str(error.value)
    assert "the download failed" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []
    assert f"download {address} by hand and put it at {path}, or name your copy with --checkpoint" in message


def test_find_weights_takes_what_is_there_before_it_downloads(tmp_path):
    kind = SAM_TYPES["vit_b"]
    (tmp_path / kind.weights_file).write_bytes(b"here")
    assert find_weights("vit_b", tmp_path, "http://127.0.0.1:9/") == tmp_path / kind.weights_file
    with pytest.raises(UserError, match="http://127.0.0.1:9/sam_vit_l_0b3195.pth"):
        find_weights("vit_l", tmp_path, "http://127.0.0.1:9/")


def test_vit_mini_comes_with_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED_WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"sam_vit_mini.pth: missing, and published nowhere else"):
        find_weights("vit_mini", tmp_path)
    (tmp_path / "sam_vit_mini.pth").touch()
    assert find_weights("vit_mini") == tmp_path / "sam_vit_mini.pth"


# ---- images in, masks out -------------------------------------------------------------------------------------

def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_frame(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images resized as SamPredictor does and padded: (B, 3, S, S) uint8 and their (h, w)."""
    resized = [ResizeLongestSide(SIDE).apply_image(image) for image in images]
    frames = torch.zeros(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    for frame, image in zip(frames, resized):
        frame[:, :image.shape[0], :image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    return frames, torch.tensor([image.shape[:2] for image in resized])


def test_preprocess_equals_the_tensor_that_set_image_gives_the_encoder(mini):
    from segment_anything import SamPredictor
    images = [picture(90, 143), picture(301, 170, seed=1)]
    ours = preprocess(*in_frame(images), mini)
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for image in images:
            SamPredictor(mini).set_image(image)
    finally:
        hook.remove()
    assert torch.equal(ours, torch.cat(seen))


def test_frame_mask_is_true_on_the_picture():
    mask = frame_mask(torch.tensor([[2, 5], [4, 3]]), 5)
    assert mask.shape == (2, 1, 5, 5) and mask.sum(dim=(1, 2, 3)).tolist() == [10, 12]
    assert mask[0, 0, 1, 4] and not mask[0, 0, 2, 0] and mask[1, 0, 3, 2] and not mask[1, 0, 0, 3]


def test_logits_and_masks_equal_sam_predictor_s(mini):
    from segment_anything import SamPredictor
    image = picture(90, 143)
    points = np.array([[70.0, 40], [30, 20], [100, 80]])
    predictor = SamPredictor(mini)
    predictor.set_image(image)
    coords = torch.from_numpy(predictor.transform.apply_coords(points, image.shape[:2])).float()[None]
    prompts = Prompts(coords, torch.ones(1, 3, dtype=torch.long))
    frames, input_sizes = in_frame([image])
    with torch.inference_mode():
        embeddings = mini.image_encoder(preprocess(frames, input_sizes, mini))
        for several in (False, True):
            full, iou, low = predictor.predict_torch(coords, prompts.point_labels, multimask_output=several,
                                                     return_logits=True)
            our_low, our_iou = decode(mini, embeddings, prompts, multimask_output=several)
            torch.testing.assert_close(our_low, low, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(our_iou, iou, atol=1e-5, rtol=1e-5)
            our_full = postprocess_masks(our_low, SIDE, input_sizes[0].tolist(), image.shape[:2])
            torch.testing.assert_close(our_full, full, atol=1e-5, rtol=1e-5)
            assert 0.05 < (full > 0).float().mean() < 0.95  # else equality would say little


def mixed_prompts() -> tuple[Prompts, list[Prompts]]:
    """Six rows of every kind, as one batch and one by one: points, background points, boxes, and both."""
    kinds = [([[40.0, 50], [60, 70], [80, 90]], [1, 1, 1], None), ([[100.0, 100]], [1], None),
             ([], [], [20.0, 30, 120, 90]), ([[50.0, 60], [10, 10]], [1, 0], [30.0, 30, 90, 150]),
             ([[60.0, 20], [70, 30], [80, 40]], [1, 0, 1], None), ([], [], [5.0, 5, 50, 80])]
    coords, labels, boxes = torch.zeros(6, 3, 2), torch.full((6, 3), -1), torch.full((6, 4), torch.nan)
    singles = []
    for i, (points, point_labels, box) in enumerate(kinds):
        coords[i, :len(points)] = torch.tensor(points).reshape(-1, 2)
        labels[i, :len(points)] = torch.tensor(point_labels)
        if box:
            boxes[i] = torch.tensor(box)
        singles.append(Prompts(coords[i:i + 1, :len(points)], labels[i:i + 1, :len(points)],
                               torch.tensor([box]) if box else None))
    return Prompts(coords, labels, boxes), singles


@pytest.mark.parametrize("with_masks", [pytest.param(False, id="prompts"), pytest.param(True, id="and mask input")])
def test_a_batch_decodes_as_each_of_its_rows_alone_and_as_predict_torch(mini, with_masks):
    from segment_anything import SamPredictor
    prompts, singles = mixed_prompts()
    generator = torch.Generator().manual_seed(0)
    images = [picture(90, 143), picture(301, 170, seed=1)]
    mask_input = torch.randn(6, 1, 64, 64, generator=generator) if with_masks else None
    image_index = torch.tensor([0, 1, 1, 0, 0, 1])
    frames, input_sizes = in_frame(images)
    predictor = SamPredictor(mini)
    with torch.inference_mode():
        embeddings = mini.image_encoder(preprocess(frames, input_sizes, mini))
        masks, iou = decode_all(mini, embeddings[image_index], prompts, mask_input)
        assert masks.shape == (6, 4, 64, 64) and iou.shape == (6, 4)
        for i, single in enumerate(singles):
            own_mask = None if mask_input is None else mask_input[i:i + 1]
            alone, own_iou = decode_all(mini, embeddings[image_index[i:i + 1]], single, own_mask)
            torch.testing.assert_close(masks[i:i + 1], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[i:i + 1], own_iou, atol=1e-5, rtol=1e-5)
            predictor.set_image(images[image_index[i]])
            has_points = single.point_labels.shape[1] > 0
            theirs = predictor.predict_torch(single.point_coords if has_points else None,
                                             single.point_labels if has_points else None, single.boxes, own_mask,
                                             multimask_output=True, return_logits=True)
            torch.testing.assert_close(masks[i:i + 1, 1:], theirs[2], atol=2e-5, rtol=1e-4)


def test_prompts_are_cut_and_grouped_by_kind():
    prompts, _ = mixed_prompts()
    assert [group.tolist() for group in prompts.groups()] == [[2, 5], [1], [3], [0, 4]]
    part = prompts[1:4]
    assert part.point_labels.tolist() == prompts.point_labels[1:4].tolist() and part.boxes.shape == (3, 4)
    box_only = prompts.rows(torch.tensor([2, 5]))
    assert box_only.point_coords.shape == (2, 0, 2) and box_only.boxes.tolist() == prompts.boxes[[2, 5]].tolist()
    assert prompts.rows(torch.tensor([0, 4])).boxes is None


# ---- torchvision's nms, where torchvision has none ----------------------------------------------------------------

def nms_by_hand(boxes: list, scores: list, threshold: float) -> list[int]:
    """Best box first; drop what overlaps a kept one too much."""
    def iou(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / area
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


BOX = st.tuples(st.integers(0, 12), st.integers(0, 20), st.integers(1, 12), st.integers(1, 9)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@given(st.lists(st.tuples(BOX, st.integers(0, 8)), max_size=12), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@settings(max_examples=100, deadline=None)
def test_nms_keeps_what_greedy_suppression_keeps(scored_boxes, threshold):
    boxes, scores = [box for box, _ in scored_boxes], [score / 8 for _, score in scored_boxes]
    kept = nms(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), torch.tensor(scores), threshold)
    assert kept.dtype == torch.long and kept.tolist() == nms_by_hand(boxes, scores, threshold)


def test_torchvision_s_own_call_reaches_an_nms():
    from torchvision.ops import nms as torchvision_nms
    boxes = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 19], [30, 0, 40, 20]])
    assert torchvision_nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


def test_a_small_model_stays_in_float32_on_any_cpu_and_a_large_one_where_bfloat16_is_emulated(monkeypatch):
    from sam_lora.model.precision import bf16_is_faster
    assert not bf16_is_faster(build_sam("vit_mini"))
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert not bf16_is_faster(sam)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("labels", "boxed", "masked"), [
    pytest.param([[1, 0, 1], [0, 0, 1]], False, False, id="points"),
    pytest.param([[1], [0]], True, True, id="points, boxes and masks"),
    pytest.param([[], []], True, False, id="boxes"),
    pytest.param([[1.0], [0.0]], False, True, id="labels as floats")])
def test_prompts_are_embedded_as_by_segment_anything_to_the_last_bit(mini_weights, labels, boxed, masked, autocast):
    from sam_lora.model.prompts import Prompts, _embed_prompts
    encoder = load_sam("vit_mini", mini_weights)[0].prompt_encoder
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(labels)
    coords = torch.rand(2, labels.shape[1], 2, generator=generator) * 255
    boxes = torch.rand(2, 4, generator=generator) * 255 if boxed else None
    masks = torch.randn(2, 1, 64, 64, generator=generator) if masked else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = _embed_prompts(encoder, Prompts(coords, labels, boxes), masks)
        theirs = encoder(points=(coords, labels) if labels.shape[1] else None, boxes=boxes, masks=masks)
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype and torch.equal(one, other)
