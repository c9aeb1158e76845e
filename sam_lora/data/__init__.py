"""Annotations and photos -> class folders -> split tables -> rows with their prompts.

Everything that happens before a model is there: reading images, masks and tables, geometry, clicks, splits.
Not here: tensors, SAM.
"""
