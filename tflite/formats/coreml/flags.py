"""The flags of Core ML packages. Importing this loads no Keras or coremltools."""

from absl import flags

IOS_VERSIONS = (16, 17, 18, 26)
NAMES = ("sizes", "ios", "layout", "raw_outputs")


def define_flags() -> None:
    """Defines the flags that only Core ML packages use."""
    flags.DEFINE_list(
        "sizes",
        None,
        "Make one package for several sizes: sides of the input image in pixels. The "
        "first one is the default.",
    )
    flags.DEFINE_enum(
        "ios",
        None,
        list(map(str, IOS_VERSIONS)),
        "Oldest iOS version that runs the package. Default: the oldest "
        "possible. It is 16, or 17 if a package of several --sizes resizes feature "
        "maps.",
    )
    flags.DEFINE_enum(
        "layout",
        "tokens",
        ["tokens", "ane"],
        "Experimental: memory layout of the transformers' tokens. tokens: "
        "channels last. ane: the layout of Apple's guide for the Neural Engine, with "
        "one matrix product per attention head. Measure on a phone which is faster.",
    )
    flags.DEFINE_bool(
        "raw_outputs",
        False,
        "Return numbers instead of class names: a classifier's logits, the "
        "boxes and scores of all of a detector's anchors, or a segmenter's logits at "
        "the output stride.",
    )
