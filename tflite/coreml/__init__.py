"""Core ML packages of a `tflite.graph.Graph`, and the proof of their numbers."""
