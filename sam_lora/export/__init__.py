"""A tuned model in other formats, each checked against the checkpoint: ONNX, transformers.

Not here: our own checkpoint (model/checkpoints).
"""
