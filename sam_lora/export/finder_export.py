"""The finder beside an exported SAM: a small file for PyTorch, and ONNX on the same image embeddings.

ONNX: image_embeddings (1, C, h, w) float32
    -> objectness (1, g, g) from 0 to 1   classes (1, K, g, g), probabilities that sum to 1   boxes (1, 4, g, g) xyxy in
    pixels of the model frame;  g is 2h
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from sam_lora.export import onnx_export, parity
from sam_lora.export.parity import Reference
from sam_lora.model.finder import Finder, load_finder, save_finder


class FinderForOnnx(nn.Module):
    """The finder with what is done to its logits."""

    def __init__(self, finder: Finder, cell: int) -> None:
        super().__init__()
        self.finder, self.cell = finder, cell

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.finder(image_embeddings, self.cell)
        return found.objectness.sigmoid(), found.classes.softmax(dim=1), found.boxes


@torch.inference_mode()
def export_finder(finder: Finder, path: Path, reference: Reference, cell: int, name: object) -> float:
    """Write the file that `load_finder` reads; returns the largest difference of what comes back. UserError."""
    save_finder(finder, path)
    loaded, ours = FinderForOnnx(load_finder(path), cell), FinderForOnnx(finder, cell)
    differences = [parity.largest_difference(one, other) for embedding in reference.embeddings
                   for one, other in zip(loaded(embedding), ours(embedding))]
    parity.check_difference(parity.largest(differences), name, reference.source)
    return parity.largest(differences)


@torch.inference_mode()
def export_onnx_finder(finder: Finder, path: Path, reference: Reference, cell: int, name: object) -> float:
    """Write the finder as ONNX; returns the largest difference, boxes in frames' sides. UserError if it is large."""
    ours, embedding = FinderForOnnx(finder, cell), reference.embeddings[0]
    onnx_export.export_module(ours, {"image_embeddings": torch.zeros_like(embedding)},
                              ["objectness", "classes", "boxes"], path)
    session, differences = onnx_export.open_session(path), []
    for embedding in reference.embeddings:
        expected, outputs = ours(embedding), session.run(None, {"image_embeddings": embedding.numpy()})
        side = expected[2].shape[-1] * cell
        for output, wanted, scale in zip(outputs, expected, (1, 1, side)):
            differences.append(parity.largest_difference(torch.from_numpy(output) / scale, wanted / scale))
    parity.check_difference(parity.largest(differences), name, reference.source)
    return parity.largest(differences)
