"""Networks that are measured side by side: the paper's table 3.

Holds the list, the networks in Keras and their conversion.
May import the rest of `tflite`.
"""
