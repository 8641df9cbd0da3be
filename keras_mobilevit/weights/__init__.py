"""Weights: downloading, loading and saving, and the names in other libraries.

May import `keras_mobilevit` below the models: `anchors`, `configs` and `files`.
"""
