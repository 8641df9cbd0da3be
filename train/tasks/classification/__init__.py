"""Which of the classes an image shows."""
