"""Core ML packages of a `tflite.graph.graph.Graph`, and the proof of their numbers."""
