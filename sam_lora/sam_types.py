"""What flags choose from: SAM architectures, layers that LoRA adapts, mask losses. Free of torch, for `--help`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamType:
    """One SAM architecture: the dimensions of its image encoder and mask decoder, and its weights file.

    `weights_sha256` is empty for a type that ships with the project and is published nowhere else.
    """

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
    # the small SAM that ships, made by pretrain/; 256 px is a grid of 16 x 16, so every block attends globally
    SamType("vit_mini", 160, 6, 5, (0, 1, 2, 3, 4, 5), "sam_vit_mini.pth", 0, "",
            image_size=256, prompt_embed_dim=128, decoder_mlp_dim=512, iou_head_hidden_dim=128),
)}

LORA_TARGETS = {"qkv": "attn.qkv", "proj": "attn.proj", "lin1": "mlp.lin1", "lin2": "mlp.lin2"}  # flag -> layer

LOSSES = ("bce_iou", "focal_dice", "bce_dice")  # the functions themselves: training/losses
