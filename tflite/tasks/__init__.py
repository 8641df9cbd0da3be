"""What a converted file returns, one module a task.

A task holds the outputs, their decoding, score and limits.
May import `keras_mobilevit`, `train.tasks` and `tflite.validation`.
"""
