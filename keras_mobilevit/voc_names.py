"""PASCAL VOC's 20 classes after the background, in the order of its masks' indices."""

VOC_NAMES = tuple(
    """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow,
dining table, dog, horse, motorbike, person, potted plant, sheep, sofa, train,
tv monitor
""".replace("\n", " ")
    .strip()
    .split(", ")
)
