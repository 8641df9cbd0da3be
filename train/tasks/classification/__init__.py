"""Classification: the class of an image."""
