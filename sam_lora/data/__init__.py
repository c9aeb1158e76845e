"""Annotations and photos -> class folders -> split tables -> rows with their prompts.

Everything that happens before a model is involved: reading images, masks and tables, geometry, clicks, splits, where
each crop comes from. Not here: tensors, SAM.
"""
