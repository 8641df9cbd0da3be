"""The recipes: values of `train.config.TrainConfig` for a task and a kind of data.

The defaults are the recipe for ImageNet. The others name what differs from it.
`train.data.registry` says which recipe is the default for which kind of data.
"""

from train.data.registry import find_kind

# What the published recipes for detectors and segmenters have in common (section 4.2).
# The cosine ends as in the released code; the paper's text says 9e-5.
_PUBLISHED = dict(
    batch_size=128,
    learning_rate=9e-4,
    min_learning_rate=1e-6,
    warmup_learning_rate=9e-5,
    learning_rate_batch=128,
    warmup_steps=500,
    label_smoothing=0.0,
    weights="imagenet",
)


def _rates(learning_rate: float, weight_decay: float) -> dict:
    """Returns what the published recipe of MobileViTv2 sets by the width."""
    return dict(
        learning_rate=learning_rate,
        min_learning_rate=learning_rate / 10,
        weight_decay=weight_decay,
    )


# Wide models learn more slowly, and decay more.
_MOBILEVIT_V2 = {
    "mobilevitv2_050": _rates(0.0090, 0.004),
    "mobilevitv2_075": _rates(0.0090, 0.008),
    "mobilevitv2_100": _rates(0.0075, 0.013),
    "mobilevitv2_125": _rates(0.0049, 0.020),
    "mobilevitv2_150": _rates(0.0035, 0.029),
    "mobilevitv2_175": _rates(0.0026, 0.039),
    "mobilevitv2_200": _rates(0.0020, 0.050),
}
# A few hundred to a few thousand photographs, from scratch.
_VOC_SMALL = dict(
    data="voc:",
    model="mobilevit_xxs",
    batch_size=8,
    eval_size=320,
    learning_rate=0.0015,
    min_learning_rate=0.00002,
    warmup_steps=200,
    label_smoothing=0.0,
    ema_momentum=0.995,
    color_jitter=True,
)
# 1,600 scenes of 128x128 pixels.
_SCENES = dict(
    data="digits",
    model="mobilevit_xxs",
    batch_size=16,
    min_learning_rate=0.00002,
    warmup_steps=100,
    label_smoothing=0.0,
    ema_momentum=0.99,
    crop_scale=1.0,
    flip=False,
)
# A few thousand photographs. One size: in six epochs from pretrained weights, the sizes
# 128, 160 and 192 lost 0.5 to 1.4 points at 128 to 256 pixels (docs/benchmarks.md).
_PHOTOS = dict(
    data="folder:",
    model="mobilevit_xxs",
    sizes=(160,),
    base_size=160,
    batch_size=64,
    eval_size=160,
)
RECIPES: dict[str, dict] = {
    "imagenet": dict(data="tfds:imagenet2012", learning_rate_batch=1024),
    # The released recipe of MobileViTv2 (https://arxiv.org/abs/2206.02680), for 8
    # devices with 128 images each. It resizes crops bicubically; this project always
    # resizes linearly, as the recipe of MobileViT does.
    "imagenet_v2": dict(
        _MOBILEVIT_V2["mobilevitv2_100"],
        data="tfds:imagenet2012",
        model="mobilevitv2_100",
        sizes=(256,),
        learning_rate_batch=1024,
        warmup_learning_rate=1e-6,
        warmup_steps=20_000,
        decay_norms=False,
        gradient_clip=10.0,
        rand_augment=2,
        random_erasing=0.25,
        mixup=0.2,
        cutmix=1.0,
    ),
    # Measured with the sizes 128, 160 and 192: 72.4 % top-1 on 10 classes of clothing
    # (3068 images). 30 epochs at one size were not measured.
    "folder_small": dict(_PHOTOS, epochs=30, warmup_steps=240),
    # Measured on the same images with the sizes 128, 160 and 192: 83.3 % top-1, from
    # weights that had been fine-tuned from the published ones.
    "fine_tune": dict(
        _PHOTOS,
        weights="imagenet",
        epochs=6,
        learning_rate=0.0005,
        min_learning_rate=0.00005,
        warmup_steps=50,
        head_lr_multiplier=4.0,
    ),
    # 1,437 scans of 8x8 pixels. The digits are centered and fill the image; a flipped
    # digit would be another one or none.
    "digits": dict(
        data="digits",
        model="mobilevit_xxs",
        sizes=(32, 48, 64),
        base_size=48,
        batch_size=64,
        eval_size=48,
        eval_crop=1.0,
        epochs=30,
        warmup_steps=100,
        crop_scale=0.5,
        flip=False,
    ),
    # 200 epochs of COCO.
    "coco": dict(
        _PUBLISHED,
        task="detection",
        data="tfds:coco/2017",
        sizes=(320,),
        base_size=320,
        eval_size=320,
        epochs=200,
        crop_scale=0.09,
        color_jitter=True,
    ),
    "voc_detection_small": dict(
        _VOC_SMALL,
        task="detection",
        sizes=(256, 320, 384),
        base_size=320,
        epochs=60,
        crop_scale=0.3,
    ),
    # In larger images more objects have an anchor that overlaps them by half: 45 % at
    # 128, 57 % at 160. At these sizes and without crops, AP50 was 0.49 after 8 epochs;
    # at 96 and 128 with crops, 0.12. The two effects were not measured separately.
    "digits_detection": dict(
        _SCENES,
        task="detection",
        sizes=(128, 160),
        base_size=128,
        eval_size=160,
        epochs=20,
    ),
    # 50 epochs of VOC with the masks of SBD.
    "voc2012": dict(
        _PUBLISHED,
        task="segmentation",
        data="voc:",
        sizes=(512,),
        base_size=512,
        eval_size=512,
        epochs=50,
        crop_scale=0.25,
        head_lr_multiplier=10.0,
    ),
    # Made for 367 photographs of 480x360 pixels, on two cores within an hour. The head
    # has the learning rate of the backbone, which is also trained from scratch.
    "voc_segmentation_small": dict(
        _VOC_SMALL,
        task="segmentation",
        sizes=(192, 256, 320),
        base_size=256,
        epochs=70,
        crop_scale=0.36,
    ),
    # Enlarged because strokes are thinner than a cell of the head. The best possible
    # mean IoU is 0.80 with 8x8 cells (128 pixels), 0.90 with 12x12 (192) and 0.95 with
    # 16x16 (256), as logits fitted to the masks show.
    "digits_segmentation": dict(
        _SCENES,
        task="segmentation",
        sizes=(192, 224),
        base_size=192,
        eval_size=224,
        epochs=7,
    ),
}
# Values of a recipe that depend on the model. Other models have the recipe's own.
BY_MODEL: dict[str, dict[str, dict]] = {
    "imagenet_v2": _MOBILEVIT_V2,
    # The released detectors and segmenters of MobileViTv2.
    "coco": dict.fromkeys(_MOBILEVIT_V2, dict(weight_decay=0.05)),
    "voc2012": dict.fromkeys(
        _MOBILEVIT_V2,
        dict(
            learning_rate=5e-4,
            warmup_learning_rate=5e-5,
            weight_decay=0.05,
            head_lr_multiplier=1.0,
            gradient_clip=10.0,
            auxiliary_weight=0.4,
        ),
    ),
}


def default_recipe(data: str, task: str = "classification") -> str:
    """Returns the name of the recipe for a task and a kind of data."""
    return find_kind(task, data).recipe
