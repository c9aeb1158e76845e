"""segment_anything's own classes, taken from here by the rest of the project.

Importing segment_anything imports torchvision; this module first makes that possible beside a CPU-only torch.
"""

from sam_lora.model.torchvision_ops import import_torchvision

import_torchvision()
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos  # noqa: E402
from segment_anything.modeling.transformer import Attention as DecoderAttention  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

__all__ = ["Attention", "Block", "DecoderAttention", "ImageEncoderViT", "MaskDecoder", "PromptEncoder",
           "ResizeLongestSide", "Sam", "TwoWayTransformer", "get_rel_pos"]
