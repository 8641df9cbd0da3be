"""A trained network as a flat list of operations, and its rewrites for phones.

It reads a Keras model, rewrites it with equal outputs, and computes it in TensorFlow.
May import `keras_mobilevit` only; it knows no file format.
"""
