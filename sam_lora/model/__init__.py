"""SAM: build it, load its weights, add LoRA; table rows -> batches -> image embeddings -> masks.

Whatever training and inference share. Not here: losses and optimiser (training), scores and pictures (results).
"""
