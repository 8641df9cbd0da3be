"""Which class each pixel belongs to: DeepLabv3."""
