"""Keys of a Core ML package's metadata that hold class names, or count them."""

PREVIEW_LABELS = "com.apple.coreml.model.preview.params"  # a segmenter's, for Xcode
CLASS_COUNT = "class_count"  # a detector's, without the labels of empty columns
