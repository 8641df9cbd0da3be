"""Detection with SSDLite: the boxes and classes of the objects on an image."""
