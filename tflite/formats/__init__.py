"""The file formats: how each is built, saved, described and run.

`table.py` has one row a format and loads no TensorFlow; the other modules do the work.
`coreml/` makes Core ML packages.
May import `tflite.graph`, `tflite.tasks` and `tflite.validation`.
"""
