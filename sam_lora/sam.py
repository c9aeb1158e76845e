"""The door that the README and exported files name: `from sam_lora.sam import load_sam`."""

from sam_lora.model.sam import load_sam

__all__ = ["load_sam"]
