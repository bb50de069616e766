"""Mixed precision: most layers compute in 16 bits, variables and what is saved stay in float32."""

import keras
import tensorflow as tf

PRECISIONS = ("float16", "bfloat16")
FLOAT32_LAYERS = ("images", "normalization", "fc", "predictions")  # the input's and the output's side


def set_precision(model, precision):
    """Lets a network compute in another precision, before it is traced; "float32" undoes it.

    Neither Keras' global policy nor the variables change; undone before it is saved, the file does not know of it.

    Args:
        model: a network of `keras_resnet.models`.
        precision: "float16", "bfloat16" or "float32".
    """
    policy = precision if precision == "float32" else f"mixed_{precision}"
    for layer in model.layers:
        if layer.name not in FLOAT32_LAYERS:
            layer.dtype_policy = policy


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scale for float16, for several replicas: a step is left out if any gradient of any replica overflows.

    Keras' own asks the first replica only.
    """

    def check_finite(self, grads):
        overflows = tf.cast(tf.logical_not(super().check_finite(grads)), "float32")
        return tf.distribute.get_replica_context().all_reduce("SUM", overflows) == 0
