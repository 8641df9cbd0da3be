"""Measures files on each kind of device. `targets.py` lists the kinds.

Holds a module per kind, and what their measurements have in common.
May import `keras_mobilevit`, `tflite.validation` and `tflite.formats`.
"""
