"""Build, find, download and verify a SAM; encode images and decode prompts in a batch.

`Sam.forward` runs under no_grad, and `MaskDecoder.predict_masks` repeats each image embedding once per prompt, so a
batch of images with their own prompts cannot pass through it. Here the three sub-modules are called directly, and
the decoder takes one embedding per prompt.
"""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sam_lora.errors import UserError
from sam_lora.files import STAGING_PREFIX
from sam_lora.torchvision_ops import import_torchvision

import_torchvision()  # before segment_anything; so the rest of the package takes its classes from here
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402, F401

MASK_THRESHOLD = 0.0  # logits above it are foreground, as in segment_anything
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WEIGHTS_FOLDER = Path("weights")
SHIPPED_WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class SamType:
    """One SAM architecture: the numbers of its image encoder and decoder, and where its weights are."""

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    weights_file: str
    weights_bytes: int
    weights_sha256: str
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    prompt_embed_dim: int = 256
    decoder_mlp_dim: int = 2048
    iou_head_hidden_dim: int = 256


SAM_TYPES = {sam_type.name: sam_type for sam_type in (
    SamType("vit_b", 768, 12, 12, (2, 5, 8, 11), "sam_vit_b_01ec64.pth", 375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    SamType("vit_l", 1024, 24, 16, (5, 11, 17, 23), "sam_vit_l_0b3195.pth", 1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    SamType("vit_h", 1280, 32, 16, (7, 15, 23, 31), "sam_vit_h_4b8939.pth", 2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    # the small one that ships; made by pretrain/. 256 px is a 16x16 grid, so every block attends globally
    SamType("vit_mini", 160, 6, 5, (0, 1, 2, 3, 4, 5), "sam_vit_mini.pth", 0, "",
            image_size=256, prompt_embed_dim=128, decoder_mlp_dim=512, iou_head_hidden_dim=128),
)}


# ---- building ---------------------------------------------------------------------------------------------

def build_sam(model_type: str, image_size: int | None = None) -> Sam:
    """A randomly initialised SAM of segment_anything's own classes, in eval mode.

    `image_size` is the side in pixels of the square model frame; None takes the type's own.
    """
    kind = SAM_TYPES[model_type]
    image_size = image_size or kind.image_size
    grid = image_size // kind.patch_size
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size, patch_size=kind.patch_size, embed_dim=kind.embed_dim, depth=kind.depth,
            num_heads=kind.num_heads, mlp_ratio=4, out_chans=kind.prompt_embed_dim, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=kind.window_size,
            global_attn_indexes=kind.global_attn_indexes),
        prompt_encoder=PromptEncoder(
            embed_dim=kind.prompt_embed_dim, image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3, transformer_dim=kind.prompt_embed_dim, iou_head_depth=3,
            iou_head_hidden_dim=kind.iou_head_hidden_dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=kind.prompt_embed_dim,
                                          mlp_dim=kind.decoder_mlp_dim, num_heads=8)),
        pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD))
    return sam.eval()


def resize_position_embeddings(state: Mapping[str, Tensor], sam: Sam) -> dict[str, Tensor]:
    """A state dict whose position tables fit `sam`'s image size.

    The absolute table (1, H, W, C) is interpolated bicubically; each relative table (2 * side - 1, C) linearly, as
    segment_anything's own `get_rel_pos` does. Tables that fit already are passed through untouched.
    """
    own = sam.state_dict()
    resized = dict(state)
    for name, table in state.items():
        if name not in own or table.shape == own[name].shape:
            continue
        if name == "image_encoder.pos_embed" and table.ndim == 4 and table.shape[3] == own[name].shape[3]:
            resized[name] = F.interpolate(table.permute(0, 3, 1, 2).float(), own[name].shape[1:3], mode="bicubic",
                                          align_corners=False).permute(0, 2, 3, 1)
        elif ".attn.rel_pos_" in name and table.ndim == 2 and table.shape[1] == own[name].shape[1]:
            resized[name] = F.interpolate(table.T[None].float(), own[name].shape[0], mode="linear")[0].T
    return resized


# ---- weights ----------------------------------------------------------------------------------------------

def load_sam(model_type: str, checkpoint: str | Path | None = None, image_size: int | None = None) -> tuple[Sam, str]:
    """Build a SAM with its weights: (model in eval mode, SHA-256 of the weights file). Its encoder is the faster one.

    `checkpoint` names a plain state dict in Meta's format; None finds the type's own file, downloading it if needed.
    Raises UserError when the file is absent, is no SAM, or is another SAM than `model_type`.
    """
    from sam_lora.attention import speed_up  # which takes segment_anything from here
    path = Path(checkpoint) if checkpoint is not None else find_weights(model_type)
    state = read_state_dict(path)
    kind = SAM_TYPES[model_type]
    if image_size is not None and (image_size % kind.patch_size or image_size < kind.patch_size * 4):
        raise UserError(f"--image_size {image_size}: expected a multiple of {kind.patch_size}, at least "
                        f"{kind.patch_size * 4}")
    sam = build_sam(model_type, image_size)
    load_state(sam, resize_position_embeddings(state, sam), path, model_type)
    speed_up(sam)
    return sam, sha256_of(path)


def load_plain(path: Path, expected: str) -> object:
    """What a torch file holds, on the CPU; only tensors and plain types are unpickled, so no code of a stranger runs.

    Raises UserError ending in `expected`, which says what the file should have been.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {expected}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that are not torch's own
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not its own
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {expected}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain .pth file, on the CPU. Never unpickles anything but tensors and plain types."""
    state = load_plain(path, "expected SAM weights (.pth), a plain state dict as published by Meta")
    if isinstance(state, dict) and state.get("format") == "sam-lora":
        raise UserError(f"{path}: is a LoRA checkpoint of train.py; expected base SAM weights. "
                        "Use run_inference.py with it, or export_sam.py to make a plain SAM")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no plain state dict; expected SAM weights as published by Meta")
    return state


def load_state(sam: Sam, state: Mapping[str, Tensor], path: Path, model_type: str) -> None:
    """Strict load; a UserError says what does not fit and which type the file looks like."""
    own = sam.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or shapes:
        looks = _guess_type(state)
        hint = f"; it looks like {looks}: give --model_type {looks}" if looks and looks != model_type else ""
        example = (missing or extra or shapes)[0]
        raise UserError(f"{path}: does not fit {model_type} ({len(missing)} keys missing, {len(extra)} left over, "
                        f"{len(shapes)} of another shape, e.g. {example}){hint}")
    sam.load_state_dict(state)


def _guess_type(state: Mapping[str, Tensor]) -> str | None:
    table = state.get("image_encoder.pos_embed")
    width = table.shape[-1] if table is not None and table.ndim else None
    return next((kind.name for kind in SAM_TYPES.values() if kind.embed_dim == width), None)


def find_weights(model_type: str, folder: Path = WEIGHTS_FOLDER, url: str = WEIGHTS_URL) -> Path:
    """The weights file of a type: shipped, in `folder`, or downloaded there."""
    kind = SAM_TYPES[model_type]
    shipped = SHIPPED_WEIGHTS_FOLDER / kind.weights_file
    if shipped.is_file():
        return shipped
    if not kind.weights_sha256:
        raise UserError(f"{shipped}: missing, and published nowhere else; it comes with the project: "
                        f"restore it (git checkout {shipped.name}), or name a copy with --checkpoint")
    path = folder / kind.weights_file
    if not path.is_file():
        download(url + kind.weights_file, path, kind.weights_bytes, kind.weights_sha256)
    return path


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Fetch `url` to `path` with a progress bar; resumes, checks the SHA-256, renames when whole.

    A partial file stays beside `path` for the next try. Raises UserError, saying where to get the file by hand.
    """
    partial = path.with_name(f"{STAGING_PREFIX}{path.name}")
    done = partial.stat().st_size if partial.exists() else 0
    by_hand = f"download {url} by hand and put it at {path}, or name your copy with --checkpoint"
    if done < size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                path.parent.mkdir(parents=True, exist_ok=True)
                if done and response.status != 206:  # the server does not resume: from the start
                    done = 0
                with partial.open("ab" if done else "wb") as file, tqdm(
                        desc=path.name, total=size, initial=done, unit="B", unit_scale=True) as bar:
                    while chunk := response.read(1 << 20):
                        file.write(chunk)
                        bar.update(len(chunk))
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{path}: not there, and the download failed ({reason}); {by_hand}") from error
    if partial.stat().st_size < size:
        raise UserError(f"{path}: the download stopped at {partial.stat().st_size:,} of {size:,} bytes; "
                        f"run again to resume, or {by_hand}")
    found = sha256_of(partial)
    if found != sha256:
        partial.unlink()
        raise UserError(f"{path}: the download has SHA-256 {found[:12]}…, expected {sha256[:12]}…; it was removed. "
                        f"Run again, or {by_hand}")
    shutil.move(partial, path)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def select_device(name: str) -> torch.device:
    """"auto" -> cuda, else mps, else cpu; any other name is checked to exist on this machine."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]}); "
                        "expected auto, cuda, cuda:N, mps or cpu") from error
    return device


def bf16_is_faster(sam: Sam, margin: float = 2.0) -> bool:
    """Does this CPU multiply matrices of the model's width `margin` times as fast in bfloat16 as in float32, or faster?

    Measured only where it has instructions for it (elsewhere bfloat16 is emulated, ten times slower), and for SAM's own
    sizes only: in a small model the products are not what takes the time. The margin is wide, and the best of many
    tries counts, so that the noise of the moment does not decide.
    """
    width = sam.image_encoder.pos_embed.shape[-1]
    if width < 512 or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weight = torch.ones(2048, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
        times = []
        for _ in range(10):
            started = time.perf_counter()
            torch.mm(tokens, weight)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.float32] > margin * seconds[torch.bfloat16]


def checkpoint_blocks(sam: Sam) -> None:
    """Recompute each encoder block in the backward pass instead of keeping its activations."""
    from torch.utils.checkpoint import checkpoint
    for block in sam.image_encoder.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


# ---- images in --------------------------------------------------------------------------------------------

def preprocess(images: Tensor, input_sizes: Tensor, sam: Sam) -> Tensor:
    """uint8 images padded to the model frame -> the encoder's input, equal to `Sam.preprocess`.

    `images` (B, 3, S, S) uint8 RGB, the picture at the top left; `input_sizes` (B, 2) its (h, w) in the model frame.
    Returns (B, 3, S, S) float32, zero in the padding.
    """
    side = images.shape[-1]
    normalised = (images.float() - sam.pixel_mean) / sam.pixel_std
    return normalised * frame_mask(input_sizes, side)


def frame_mask(input_sizes: Tensor, side: int) -> Tensor:
    """(B, 1, side, side) bool: True on the picture, False on the padding. `input_sizes` (B, 2) are (h, w)."""
    steps = torch.arange(side, device=input_sizes.device)
    rows = steps[None, :, None] < input_sizes[:, 0, None, None]
    columns = steps[None, None, :] < input_sizes[:, 1, None, None]
    return (rows & columns)[:, None]


def encode_frozen(sam: Sam, pixels: Tensor, blocks: int) -> Tensor:
    """The part of the image encoder that stays as released when only its last `blocks` blocks train.

    `pixels` (B, 3, S, S) from `preprocess`. Returns what enters the first block that trains, (B, h, w, width); for
    `blocks` 0 the image embeddings themselves, (B, C, h, w).
    """
    encoder = sam.image_encoder
    if blocks == 0:
        return encoder(pixels)
    features = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        features = features + encoder.pos_embed
    for block in encoder.blocks[:len(encoder.blocks) - blocks]:
        features = block(features)
    return features


def encode_rest(sam: Sam, features: Tensor, blocks: int) -> Tensor:
    """From what `encode_frozen` returned to the image embeddings (B, C, h, w): together they are the image encoder."""
    if blocks == 0:
        return features
    for block in sam.image_encoder.blocks[len(sam.image_encoder.blocks) - blocks:]:
        features = block(features)
    return sam.image_encoder.neck(features.permute(0, 3, 1, 2))


# ---- prompts in, masks out ----------------------------------------------------------------------------------

@dataclass
class Prompts:
    """The prompts of N masks, in pixels of the model frame.

    `point_coords` (N, P, 2) xy and `point_labels` (N, P): 1 foreground, 0 background, -1 no point (rows with fewer than
    P points end in -1). `boxes` (N, 4) xyxy, NaN for a row without a box; None if no row has one.
    """

    point_coords: Tensor
    point_labels: Tensor
    boxes: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "Prompts":
        boxes = None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking)
        return Prompts(self.point_coords.to(device, non_blocking=non_blocking),
                       self.point_labels.to(device, non_blocking=non_blocking), boxes)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.point_coords[rows], self.point_labels[rows],
                       None if self.boxes is None else self.boxes[rows])

    def groups(self) -> list[Tensor]:
        """Row indices, together where rows have equally many points and a box or none.

        SAM's padding point takes part in attention, so only rows of one kind can share a call and still equal the
        one-at-a-time result.
        """
        counts = (self.point_labels >= 0).sum(dim=1)
        kinds = counts * 2
        if self.boxes is not None:
            kinds = kinds + (~self.boxes.isnan().any(dim=1)).long()
        return [torch.nonzero(kinds == kind).flatten() for kind in kinds.unique()]

    def rows(self, index: Tensor) -> "Prompts":
        """The prompts of one group of rows, without padding points."""
        labels = self.point_labels[index]
        count = int((labels[0] >= 0).sum()) if len(labels) else 0
        boxes = None if self.boxes is None or self.boxes[index].isnan().any() else self.boxes[index]
        return Prompts(self.point_coords[index, :count], labels[:, :count], boxes)


def decode(sam: Sam, image_embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None = None,
           multimask_output: bool = False) -> tuple[Tensor, Tensor]:
    """Masks of N prompts, one image embedding each.

    `image_embeddings` (N, C, h, w): rows that share an image repeat its embedding (index, do not encode again).
    `mask_input` (N, 1, 4h, 4w) low-resolution logits of an earlier prediction.
    Returns low-resolution logits (N, M, 4h, 4w) and predicted IoU (N, M); M is 3 with `multimask_output`, else 1.
    """
    masks, iou_predictions = decode_all(sam, image_embeddings, prompts, mask_input)
    wanted = slice(1, None) if multimask_output else slice(0, 1)
    return masks[:, wanted], iou_predictions[:, wanted]


def decode_all(sam: Sam, image_embeddings: Tensor, prompts: Prompts,
               mask_input: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `decode`, with all four masks: index 0 is the single mask, 1 to 3 the ambiguity masks."""
    groups = prompts.groups()
    if len(groups) == 1:
        return _decode_alike(sam, image_embeddings, prompts.rows(groups[0]), mask_input)
    parts = [_decode_alike(sam, image_embeddings[rows], prompts.rows(rows),
                           None if mask_input is None else mask_input[rows]) for rows in groups]
    back = torch.cat(groups).argsort()
    return torch.cat([masks for masks, _ in parts])[back], torch.cat([iou for _, iou in parts])[back]


def _decode_alike(sam: Sam, image_embeddings: Tensor, prompts: Prompts,
                  mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    points = (prompts.point_coords, prompts.point_labels) if prompts.point_labels.shape[1] else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=mask_input)
    decoder = sam.mask_decoder
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
    image_pe = sam.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    hidden, source = decoder.transformer(image_embeddings + dense, image_pe, tokens)
    mask_tokens = hidden[:, 1:1 + decoder.num_mask_tokens]
    source = source.transpose(1, 2).reshape(image_embeddings.shape)         # (N, h*w, C) -> (N, C, h, w)
    upscaled = decoder.output_upscaling(source)                               # (N, C/8, 4h, 4w)
    weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])  # (N, 4, 4h, 4w)
    return masks, decoder.iou_prediction_head(hidden[:, 0])


def upscale_to_frame(low_res_masks: Tensor, side: int) -> Tensor:
    """Low-resolution logits (N, M, 4h, 4w) -> the model frame (N, M, side, side), as SAM does it."""
    return F.interpolate(low_res_masks, (side, side), mode="bilinear", align_corners=False)


def postprocess_masks(low_res_masks: Tensor, side: int, input_size: Sequence[int],
                      original_size: Sequence[int]) -> Tensor:
    """Logits of one image at its own resolution, exactly `Sam.postprocess_masks`.

    `low_res_masks` (N, M, 4h, 4w); `input_size` (h, w) of the picture in the model frame; `original_size` (h, w) of the
    image. Returns (N, M, H, W) logits: threshold them at MASK_THRESHOLD, after this and never before.
    """
    masks = upscale_to_frame(low_res_masks, side)[..., :input_size[0], :input_size[1]]
    return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)
