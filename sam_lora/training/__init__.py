"""What the loop in train.py is made of: losses, the update, precision, state, several processes, kept features.

Not here: the loop itself (train.py), prediction and scores (results).
"""
