"""Mixed precision: most layers compute in 16 bits; variables and saved files stay in float32."""

import typing

import keras

from keras_resnet.normalization import Tensor

FLOAT32_LAYERS = ("images", "normalization", "fc", "predictions")  # at the input and the output


def set_precision(model: keras.Model, precision: str | None) -> None:
    """Makes a network compute in 16 bits. Neither Keras' global dtype policy nor the variables change.

    Args:
        model: a network of `keras_resnet.models` that has not been traced yet.
        precision: "float16", "bfloat16", or None, which changes nothing.
    """
    for layer in model.layers if precision else ():
        if layer.name not in FLOAT32_LAYERS:
            layer.dtype_policy = f"mixed_{precision}"


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling for float16, for several replicas: skips a step if a gradient of any replica overflows.

    Keras' own checks the first replica only. It also gets another name each time in a process, and so do its variables.
    """

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer, name: str = "loss_scale_optimizer", **kwargs: typing.Any
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)

    def check_finite(self, grads: list[Tensor]) -> Tensor:
        import tensorflow as tf

        overflows = tf.cast(tf.logical_not(super().check_finite(grads)), "float32")
        return tf.distribute.get_replica_context().all_reduce("SUM", overflows) == 0
