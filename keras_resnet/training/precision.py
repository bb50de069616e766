"""Mixed precision: most layers compute in 16 bits; variables and saved files stay in float32."""

import collections
import platform
import typing

import keras

from keras_resnet.normalization import Tensor

BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # of processors, by Linux' names of the flags
FLOAT32_LAYERS = ("images", "normalization", "fc", "predictions")  # at the input and the output


def set_precision(model: keras.Model, precision: str) -> None:
    """Makes a network compute in 16 bits. Neither Keras' global dtype policy nor the variables change.

    Args:
        model: a network of `keras_resnet.models` that has not been traced yet.
        precision: "float16" or "bfloat16".
    """
    for layer in model.layers:
        if layer.name not in FLOAT32_LAYERS:
            layer.dtype_policy = f"mixed_{precision}"


def processor() -> dict[str, str]:
    """Linux's description of the first processor, {"model name": ..., "flags": ...}; "" for missing entries."""
    found: dict[str, str] = collections.defaultdict(str)
    try:
        with open("/proc/cpuinfo") as file:
            rows = (line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines())
            found.update((name.strip(), value.strip()) for name, value in rows)
    except (OSError, ValueError):  # another system
        found["model name"] = platform.processor() or platform.machine()
    return found


def described(precision: str | None) -> str:
    """The precision of a run, for messages, and whether another one would be faster on this processor."""
    import tensorflow as tf  # here, because the networks' precision is set on other backends, too

    named = precision or "float32"
    if tf.config.list_physical_devices("GPU"):
        return named
    units = [name for flag, name in BFLOAT16_UNITS.items() if flag in processor()["flags"].split()]
    if units and named != "bfloat16":
        return f"{named}; --mixed-precision bfloat16 is faster on this processor, which has {' and '.join(units)}"
    if precision and not units:
        return f"{named}; float32 is faster on this processor, which has neither AMX nor AVX512-BF16"
    return named


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling for float16, for several replicas: skips a step if a gradient of any replica overflows.

    Keras' own checks the first replica only. It also has a different name each time in a process, which its variables
    take over.
    """

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer, name: str = "loss_scale_optimizer", **kwargs: typing.Any
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)

    def check_finite(self, grads: list[Tensor]) -> Tensor:
        import tensorflow as tf

        overflows = tf.cast(tf.logical_not(super().check_finite(grads)), "float32")
        return tf.distribute.get_replica_context().all_reduce("SUM", overflows) == 0
