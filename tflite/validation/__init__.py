"""Checks that a file must pass before it is kept, and the card that reports them.

It reads and runs the files themselves: parity with Keras, operations, delegation, the
GPU, and Core ML's programs in NumPy. May import `keras_mobilevit` and `tflite.graph`.
"""
