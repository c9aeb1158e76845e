"""A trained model's predictions: masks, scores, comparison, pictures, report; also without ground truth.

Not here: training, other file formats of the model (export).
"""
