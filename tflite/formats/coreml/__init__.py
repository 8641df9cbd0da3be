"""Core ML packages: the MIL program of a `tflite.graph.graph.Graph`, and its outputs.

`mil_ops.py` has one function an operation; `classifier.py`, `detector.py` and
`segmenter.py` make the package of a task. May import what `tflite.formats` may.
"""
