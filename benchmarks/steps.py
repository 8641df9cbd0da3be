"""Training steps and forward passes that `benchmarks/training.py` measures.

A runtime is a function from settings to a `Runtime`. It imports its own library, since
the thread pools of two libraries in one process would compete. A step starts from uint8
images on the device and ends when the device has finished; nothing is augmented.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from benchmarks.workers import describe, seconds_of, set_tensorflow_threads

CLASSES = 1000
# Variables that a library reads when it is loaded.
ENVIRONMENTS = {name: {"KERAS_BACKEND": name} for name in ("tensorflow", "jax")}


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The training step or inference that a worker measures."""

    runtime: str  # a key of `RUNTIMES`
    what: str  # "step" or "inference"
    model: str  # a key of `keras_mobilevit.VARIANTS`
    precision: str  # one of `train.config.PRECISIONS`
    xla: bool  # compiles TensorFlow's step
    threads: int


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A network that is ready to run.

    `load` goes from images, uint8 `[batch, height, width, 3]`, and labels, int32
    `[batch]`, to a function that runs one step on them and waits for its end.
    """

    gpu: str  # its name; empty for the CPU
    packages: tuple[str, ...]  # that are loaded
    load: Callable


def _recipe(settings: StepSettings):
    """Returns the paper's constants."""
    from train.config import TrainConfig

    return TrainConfig(model=settings.model, precision=settings.precision)


def _tensorflow_train_step(settings: StepSettings):
    """Makes the step that train/loop.py trains with, from a batch to its sums."""
    import tensorflow as tf

    from train.data.source import Source
    from train.models import build_state
    from train.step import make_train_step
    from train.tasks.classification.task import CLASSIFICATION as TASK

    config = _recipe(settings)
    source = Source("random", tuple(map(str, range(CLASSES))), {}, None)
    state = build_state(TASK, config, source, is_fresh=True)
    strategy = tf.distribute.get_strategy()
    train_step = make_train_step(TASK, config, state, strategy, settings.xla or None)
    # One batch per call, as in training on a CPU.
    rates = tf.constant([config.min_learning_rate])
    ema_momentums = tf.constant([config.ema_momentum])
    return lambda batch: train_step((batch,), rates, ema_momentums, tf.constant(0.0))


def _tensorflow_forward(settings: StepSettings):
    """Makes the forward pass of inference, from a batch to its logits."""
    import tensorflow as tf

    model = _keras_model(settings)

    @tf.function(jit_compile=settings.xla)
    def forward(batch):
        return model(tf.cast(batch["image"], tf.float32), training=False)

    return forward


def _keras_model(settings: StepSettings):
    import keras

    from keras_mobilevit.classifier import build_classifier
    from keras_mobilevit.configs import get_variant

    keras.config.set_dtype_policy(settings.precision)
    return build_classifier(
        get_variant(settings.model),
        input_shape=(None, None, 3),
        classes=CLASSES,
        classifier_activation=None,
    )


def tensorflow_runtime(settings: StepSettings) -> Runtime:
    """Prepares the TensorFlow that this project trains with."""
    import tensorflow as tf

    set_tensorflow_threads(settings.threads)
    make = {"step": _tensorflow_train_step, "inference": _tensorflow_forward}
    function = make[settings.what](settings)
    gpu = ""
    for device in tf.config.list_physical_devices("GPU")[:1]:
        gpu = tf.config.experimental.get_device_details(device)["device_name"]

    def load(images, labels):
        batch = {
            "image": tf.constant(images),
            "label": tf.constant(labels),
            "weight": tf.ones(len(images)),
        }

        def step():
            function(batch)
            tf.test.experimental.sync_devices()

        return step

    return Runtime(gpu, ("tensorflow", "keras"), load)


def _jax_loss(model, optimizer, label_smoothing: float):
    """Makes the loss of a training step, as a function of a state and a batch."""
    import jax
    import keras

    def loss(trainable, state, images, labels):
        logits, others = model.stateless_call(
            trainable, state["others"], images.astype("float32"), training=True
        )
        targets = jax.nn.one_hot(labels, CLASSES) * (1 - label_smoothing)
        targets += label_smoothing / CLASSES
        logs = jax.nn.log_softmax(logits.astype("float32"))
        value = -(targets * logs).sum(-1).mean()
        # In mixed_float16 the scale is one of the optimizer's variables.
        known = list(zip(optimizer.variables, state["optimizer"]))
        with keras.StatelessScope(state_mapping=known):
            return optimizer.scale_loss(value), others

    return loss


def _follow(average, values, momentum: float):
    """Updates a moving average of weights; integers, such as seeds, are copied."""
    return [
        mean * momentum + value * (1 - momentum) if value.dtype.kind == "f" else value
        for mean, value in zip(average, values)
    ]


def _jax_train_step(settings: StepSettings):
    """Makes a training step, from images and labels to a state to wait for."""
    import jax
    import keras

    config = _recipe(settings)
    model = _keras_model(settings)
    optimizer = keras.optimizers.AdamW(
        config.min_learning_rate, config.weight_decay, epsilon=1e-8
    )
    if settings.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    loss = _jax_loss(model, optimizer, config.label_smoothing)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        (_, others), gradients = jax.value_and_grad(loss, has_aux=True)(
            state["trainable"], state, images, labels
        )
        trainable, variables = optimizer.stateless_apply(
            state["optimizer"], gradients, state["trainable"]
        )
        values = [*trainable, *others]
        return {
            "trainable": trainable,
            "others": others,
            "optimizer": variables,
            "average": _follow(state["average"], values, config.ema_momentum),
        }

    state = _jax_state(model, optimizer)

    def train_step(images, labels):
        nonlocal state
        state = step(state, images, labels)
        return state

    return train_step


def _jax_state(model, optimizer) -> dict:
    """Returns copies of all arrays, since a step donates its inputs to JAX."""
    import jax.numpy as jnp

    variables = {
        "trainable": model.trainable_variables,
        "others": model.non_trainable_variables,
        "optimizer": optimizer.variables,
        "average": model.trainable_variables + model.non_trainable_variables,
    }
    return {
        name: [jnp.array(v.value, copy=True) for v in values]
        for name, values in variables.items()
    }


def _jax_forward(settings: StepSettings):
    """Makes the forward pass of inference, from images and labels to logits."""
    import jax

    model = _keras_model(settings)
    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    @jax.jit
    def forward(trainable, others, images):
        images = images.astype("float32")
        return model.stateless_call(trainable, others, images, training=False)[0]

    return lambda images, labels: forward(trainable, others, images)


def jax_runtime(settings: StepSettings) -> Runtime:
    """Prepares Keras's JAX backend, which uses one thread for each visible core."""
    import jax

    make = {"step": _jax_train_step, "inference": _jax_forward}
    function = make[settings.what](settings)
    (device, *_) = jax.devices()

    def load(images, labels):
        batch = jax.device_put(images), jax.device_put(labels)
        return lambda: jax.block_until_ready(function(*batch))

    gpu = "" if device.platform == "cpu" else device.device_kind
    return Runtime(gpu, ("jax", "keras"), load)


def _fastest_adamw(model, config, wait):
    """Returns AdamW in the fastest of PyTorch's implementations on this device."""
    import torch

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    by_seconds = {}
    for implementation in ("foreach", "fused"):
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.min_learning_rate,
            weight_decay=config.weight_decay,
            eps=1e-8,
            **{implementation: True},
        )

        def step(optimizer=optimizer):
            optimizer.step()
            wait()

        with contextlib.suppress(RuntimeError):  # not on every device
            step()  # creates its state
            by_seconds[min(seconds_of(step) for _ in range(3))] = optimizer
    return by_seconds[min(by_seconds)]


def _timm_train_step(model, network, settings: StepSettings, autocast, wait):
    """Makes a training step; `network` is the model, compiled on a GPU."""
    import timm.utils
    import torch

    config = _recipe(settings)
    optimizer = _fastest_adamw(model, config, wait)
    average = timm.utils.ModelEmaV3(model, decay=config.ema_momentum)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    device = next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(device, enabled=settings.precision == "mixed_float16")

    def train_step(images, labels):
        optimizer.zero_grad()
        with autocast():
            loss = criterion(network(images.float() / 255), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update(model)

    return train_step


def _timm_forward(network, autocast):
    """Makes the forward pass of inference."""
    import torch

    @torch.inference_mode()
    def forward(images, labels):
        with autocast():
            return network(images.float() / 255)

    return forward


def timm_runtime(settings: StepSettings) -> Runtime:
    """Prepares timm's model in PyTorch, without dropout, as fast as it can be."""
    import timm
    import torch

    torch.set_num_threads(settings.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(settings.model, num_classes=CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    model.train(settings.what == "step")
    network = model
    # On a CPU the reference is PyTorch's eager mode in channels-last layout.
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in the other two
        torch.backends.cudnn.benchmark = True
        network = torch.compile(model, dynamic=False)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    reduced = settings.precision.removeprefix("mixed_")
    autocast = functools.partial(
        torch.autocast,
        device,
        dtype=torch.bfloat16 if reduced == "float32" else getattr(torch, reduced),
        enabled=reduced != "float32",
    )
    if settings.what == "step":
        function = _timm_train_step(model, network, settings, autocast, wait)
    else:
        function = _timm_forward(network, autocast)

    def load(images, labels):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
        batch = pixels.to(device), torch.from_numpy(labels).long().to(device)

        def step():
            function(*batch)
            wait()

        return step

    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    return Runtime(gpu, ("torch", "timm"), load)


RUNTIMES = {"tensorflow": tensorflow_runtime, "jax": jax_runtime, "timm": timm_runtime}


def start(settings: dict) -> tuple[dict, Callable[[dict], dict]]:
    """Prepares a runtime; see `benchmarks.workers.Candidate`."""
    own = StepSettings(**settings)
    runtime = RUNTIMES[own.runtime](own)

    @functools.lru_cache(maxsize=1)  # one size at a time
    def load(size: int, batch: int):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
        return runtime.load(images, rng.integers(0, CLASSES, batch, np.int32))

    def measure(request: dict) -> dict:
        step = load(request["size"], request["batch"])
        for _ in range(request["warmup"]):
            step()
        return {"seconds": [seconds_of(step) for _ in range(request["steps"])]}

    return describe(runtime.packages, runtime.gpu), measure
