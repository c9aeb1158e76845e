"""SAM as a folder for `SamModel.from_pretrained` and `SamProcessor.from_pretrained` of transformers.

Every type that this project builds fits HF's classes: width, depth, heads, image size, decoder width and its MLP, and
windowed or global attention in each block are all settings there.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.export.parity import Probe, Reference, allowed_difference
from sam_lora.model.meta import Sam  # mends torchvision, which transformers imports too
from sam_lora.sam_types import SAM_TYPES

if TYPE_CHECKING:
    import transformers

OWNED_FILES = ("config.json", "model.safetensors", "processor_config.json", "preprocessor_config.json")
PE_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
PE_MATRIX_NAMES = ("shared_image_embedding.positional_embedding",
                   "prompt_encoder.shared_embedding.positional_embedding")

# Meta's names -> HF's; all are applied to each key, in this order
RENAMES = tuple((re.compile(pattern), new) for pattern, new in (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.norm([1-4])\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    # the three layers of each small MLP; not the transformer's, whose layers are numbered the same way
    (r"(hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
))


def require_transformers() -> None:
    """Raise UserError unless the package is installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"--hf needs the package transformers ({error}); run: pip install transformers") from error


def hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with Meta's keys -> one with HF's, which has the positional matrix twice."""
    renamed = {}
    for name, tensor in state.items():
        for new_name in PE_MATRIX_NAMES if name == PE_MATRIX else (hf_name(name),):
            renamed[new_name] = tensor
    return renamed


def hf_name(name: str) -> str:
    """HF's name for one of Meta's keys, other than PE_MATRIX."""
    for pattern, new in RENAMES:
        name = pattern.sub(new, name)
    return name


def hf_config(model_type: str, image_size: int) -> "transformers.SamConfig":
    """The settings of HF's SamModel for a type of SAM_TYPES at an image size."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
    sam_type = SAM_TYPES[model_type]
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=sam_type.embed_dim, output_channels=sam_type.prompt_embed_dim, num_hidden_layers=sam_type.depth,
            num_attention_heads=sam_type.num_heads, image_size=image_size, patch_size=sam_type.patch_size,
            window_size=sam_type.window_size, global_attn_indexes=list(sam_type.global_attn_indexes),
            num_pos_feats=sam_type.prompt_embed_dim // 2),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=sam_type.prompt_embed_dim, image_size=image_size, patch_size=sam_type.patch_size),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=sam_type.prompt_embed_dim, mlp_dim=sam_type.decoder_mlp_dim,
            iou_head_hidden_dim=sam_type.iou_head_hidden_dim,
            layer_norm_eps=1e-5))  # segment_anything's; HF's default is 1e-6


def save_hf(sam: Sam, model_type: str, folder: Path) -> None:
    """Write the configuration, weights and processor settings of a merged `sam` into an empty folder."""
    from transformers import SamImageProcessor, SamModel, SamProcessor
    side = sam.image_encoder.img_size
    with _quiet():
        model = SamModel(hf_config(model_type, side))
        model.load_state_dict(hf_state(sam.state_dict()))
        model.save_pretrained(folder)
        images = SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side},
                                   mask_size={"longest_edge": side // 4},
                                   mask_pad_size={"height": side // 4, "width": side // 4})
        images.save_pretrained(folder)  # for SamImageProcessor, and for transformers 4
        SamProcessor(images).save_pretrained(folder)


def load_hf(folder: Path, name: object = None) -> "transformers.SamModel":
    """A folder's model in eval mode, read without a network. Raises UserError if a tensor is missing or unknown.

    `name` is what the error calls the folder; default: its path.
    """
    from transformers import SamModel
    with _quiet():
        model, info = SamModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    problems = [f"{kind.replace('_', ' ')}: {sorted(map(str, keys))[0]}" for kind, keys in info.items() if keys]
    if problems:
        raise UserError(f"{name or folder}: not kept, because transformers cannot load all of it "
                        f"({'; '.join(problems)})")
    return model.eval()


@torch.inference_mode()
def hf_logits(model: "transformers.SamModel", probe: Probe) -> Tensor:
    """All four masks of a probe's prompts: (K, 4, 4h, 4w)."""
    embeddings = model.get_image_embeddings(probe.frame)
    logits = []
    for prompts, mask_input in zip(probe.prompts, probe.mask_inputs):
        points = {} if not prompts.point_labels.shape[1] else {"input_points": prompts.point_coords[None],
                                                               "input_labels": prompts.point_labels[None]}
        boxes = None if prompts.boxes is None else prompts.boxes[None]
        logits.append(torch.cat([model(image_embeddings=embeddings, **points, input_boxes=boxes, input_masks=mask_input,
                                       multimask_output=several).pred_masks[:, 0] for several in (False, True)], dim=1))
    return torch.cat(logits)


def check_hf(folder: Path, reference: Reference, name: object) -> float:
    """The largest difference of the logits of a folder's model. Raises UserError where it is too large."""
    model = load_hf(folder, name)
    return reference.compare(lambda probe: hf_logits(model, probe), name, allowed_difference(reference.logits))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice."""
    from transformers.utils import logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
