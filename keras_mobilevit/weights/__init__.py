"""Weights: where they are published, their names in other libraries, loading, saving.

May import the configurations and layers of `keras_mobilevit`.
"""
