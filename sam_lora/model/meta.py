"""The door to segment_anything: the project imports Meta's classes from here, never from the package itself.

segment_anything imports torchvision, and so does transformers; torchvision_ops first makes that work beside a CPU-only
torch.
"""

from sam_lora.model.torchvision_ops import import_torchvision

import_torchvision()
from segment_anything import (  # noqa: E402
    SamAutomaticMaskGenerator,
    SamPredictor,
    sam_model_registry,
)
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos  # noqa: E402
from segment_anything.modeling.transformer import Attention as DecoderAttention  # noqa: E402
from segment_anything.modeling.transformer import TwoWayAttentionBlock  # noqa: E402
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

__all__ = ["Attention", "Block", "DecoderAttention", "ImageEncoderViT", "MaskDecoder", "PromptEncoder",
           "ResizeLongestSide", "Sam", "SamAutomaticMaskGenerator", "SamOnnxModel", "SamPredictor",
           "TwoWayAttentionBlock", "TwoWayTransformer", "get_rel_pos", "sam_model_registry"]
