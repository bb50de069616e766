"""Makes TensorFlow train these networks faster without another layer in them. docs/speed.md has the measurements."""

import types

import keras
import tensorflow as tf


def fuse_batch_norm(model):
    """Lets the model's batch normalisations train through TensorFlow's fused kernel.

    Keras composes the layer from a dozen small operations, each a pass over memory and most with a gradient of
    their own. Layers, weights, results and what is saved stay the same; only this process computes them otherwise.
    Layers that are synchronised over replicas are left alone.

    Args:
        model: a `keras.Model` on the TensorFlow backend that has not been traced yet.
    """
    for layer in model.layers:
        if type(layer) is keras.layers.BatchNormalization and not layer.synchronized and not layer.renorm:
            layer.call = types.MethodType(_fused_call, layer)


def _fused_call(layer, inputs, training=None, mask=None):
    if not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    none = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma,
        offset=layer.beta,
        mean=none,
        variance=none,
        epsilon=layer.epsilon,
        is_training=True,
    )
    n = tf.cast(tf.size(inputs) // inputs.shape[-1], "float32")
    variance *= (n - 1) / n  # the kernel's is unbiased, Keras' moving average is over the biased one
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        average.assign(average * layer.momentum + value * (1 - layer.momentum))
    return outputs


def skip_graph_optimizer():
    """On CPUs, runs graphs as they were traced.

    Grappler, TensorFlow's graph optimizer, takes time in proportion to the depth before the first step, and what it
    changes in these graphs does not make the steps faster. On GPUs it chooses layouts, so there it stays.
    """
    if not tf.config.list_physical_devices("GPU"):
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
