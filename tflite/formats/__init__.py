"""The file formats: how each is built, quantized, saved and run.

`table.py` has one row a format; `coreml/` makes Core ML packages.
May import `tflite.graph`, `tflite.tasks` and `tflite.validation`.
"""
