"""The file formats: how each is built, saved, described and run.

`table.py` has one row a format and loads no TensorFlow; the other modules do the work.
`coreml/` makes Core ML packages.
May import `keras_mobilevit`, `tflite.graph`, `tflite.tasks`, `tflite.validation` and
`tflite.models`; to fine-tune, also `train.config`, `train.data` and `train.tasks`.
"""
