"""The door that the README and exported files name: `from sam_lora.sam import load_sam`, and what finds objects."""

from sam_lora.model.finder import load_finder
from sam_lora.model.sam import load_sam
from sam_lora.results.find import FindSettings, find_objects

__all__ = ["FindSettings", "find_objects", "load_finder", "load_sam"]
