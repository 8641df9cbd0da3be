"""Weights: downloading, loading and saving, and the names in other libraries.

May import the rest of `keras_mobilevit` below the models: `configs` and `files`.
"""
