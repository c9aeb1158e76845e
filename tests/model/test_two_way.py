"""The transformer that leaves tokens out, against segment_anything's on the tokens that are left."""

import torch
from conftest import random_sam

from sam_lora.model.two_way import transform


def test_absent_tokens_change_neither_the_others_nor_the_image_nor_any_gradient():
    transformer = random_sam("vit_mini").mask_decoder.transformer
    width = transformer.embedding_dim
    generator = torch.Generator().manual_seed(0)
    source, image_pe = (torch.randn(2, width, 5, 7, generator=generator) for _ in range(2))
    tokens = torch.randn(2, 6, width, generator=generator)
    present = torch.tensor([[True] * 6, [True, False, True, True, False, True]])

    def compute(run, *inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        hidden, image = run(*inputs)
        (hidden.square().sum() + image.square().sum()).backward()
        return [hidden, image, *(x.grad for x in inputs)]

    for row in range(2):
        kept = present[row]
        alone = compute(lambda *inputs: transformer(*inputs), *(x[row:row + 1] for x in (source, image_pe)),
                        tokens[row:row + 1, kept])

        def masked(source, image_pe, own, row=row, kept=kept):
            padded = tokens[row:row + 1].masked_fill(~kept[None, :, None], 1e3)
            padded = padded.index_copy(1, kept.nonzero()[:, 0], own)
            hidden, image = transform(transformer, source, image_pe, padded, kept[None])
            return hidden[:, kept], image

        together = compute(masked, *(x[row:row + 1] for x in (source, image_pe)), tokens[row:row + 1, kept])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
