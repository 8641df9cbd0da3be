"""What can be trained: one folder and one value a task.

A task holds its network, examples, loss, metrics and pictures.
May import `keras_mobilevit`, `train.data` and `train.evaluation`; no loop and no device.
"""
