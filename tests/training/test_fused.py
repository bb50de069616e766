"""The fused kernels against Keras' own arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.training.fused import fuse_batch_norm


def test_fused_batch_normalisation_is_keras_own():
    """Outputs, gradients and moving statistics, in training and in inference."""
    x = np.random.default_rng(0).normal(3, 2, (4, 8, 8, 16)).astype("float32")
    results = []
    for fused in (False, True):
        layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        model = keras.Sequential([keras.Input((8, 8, 16)), layer])
        layer.gamma.assign(np.linspace(0.5, 2, 16))
        layer.beta.assign(np.linspace(-1, 1, 16))
        if fused:
            fuse_batch_norm(model)
            assert layer.call.__func__ is not keras.layers.BatchNormalization.call
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [inputs, *variables])
        results.append([outputs, *gradients, *layer.get_weights(), model(x, training=False)])
    for stock, fused in zip(*results, strict=True):
        assert np.allclose(stock, fused, rtol=1e-3, atol=2e-3)
    assert np.allclose(results[0][-2], results[1][-2], rtol=1e-6)  # the moving variance is the biased one


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit, known", [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("size", [(6, 5, 5), (1, 1, 1)])
def test_fused_moving_averages_are_keras_own(size, jit, known, policy):
    """After three steps, in 16 bits too, of a batch whose size is known to the graph or not, and of a single pixel."""
    x = np.random.default_rng(0).normal(3, 2, (3, *size, 16)).astype("float32")
    found = []
    for fused in (False, True):
        layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy)
        model = keras.Sequential([keras.Input((None, None, 16)), layer])
        if fused:
            fuse_batch_norm(model)
        shape = [*size, 16] if known else [None, None, None, 16]
        step = tf.function(lambda x, model=model: model(x, training=True), [tf.TensorSpec(shape)], jit_compile=jit)
        outputs = [step(part) for part in x]
        found.append([*outputs, *layer.get_weights()])
    *outputs, gamma, beta, mean, variance = zip(*found, strict=True)
    tolerance = 1e-5 if policy == "float32" else 0.05
    assert all(np.allclose(*pair, rtol=tolerance, atol=tolerance) for pair in outputs)
    assert np.allclose(*mean, rtol=1e-6) and np.allclose(*variance, rtol=1e-5)
