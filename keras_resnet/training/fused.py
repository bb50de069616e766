"""Makes TensorFlow train these networks faster without changing their layers. docs/speed.md has the measurements."""

import contextlib
import types
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_resnet.optimizers import SGD


def fuse_batch_norm(model: keras.Model) -> None:
    """Makes the model's batch normalisations use TensorFlow's fused kernel in training.

    Keras composes the layer from a dozen small operations, each a pass over memory and most with a gradient of
    their own. Layers, weights, results and saved files stay the same; only the computation in this process differs.
    Layers that are synchronised over replicas do not change.

    Args:
        model: a `keras.Model` on the TensorFlow backend that has not been traced yet.
    """
    for layer in model.layers:
        if type(layer) is keras.layers.BatchNormalization and not layer.synchronized and not layer.renorm:
            layer.call = types.MethodType(_fused_call, layer)


def _fused_call(layer, inputs, training=None, mask=None):
    if not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    # The kernel also updates the moving averages, but with the unbiased variance; Keras takes the biased one.
    values = inputs.shape.num_elements() or tf.size(inputs)
    n = values // inputs.shape[-1]  # per channel
    unbiased = n / max(n - 1, 1) if isinstance(n, int) else tf.cast(n / tf.maximum(n - 1, 1), "float32")
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma,
        offset=layer.beta,
        mean=layer.moving_mean,
        variance=layer.moving_variance * unbiased,
        epsilon=layer.epsilon,
        exponential_avg_factor=1 - layer.momentum,
        is_training=True,
    )
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance * (1 / unbiased))
    return outputs


@contextlib.contextmanager
def graphs_as_traced() -> Iterator[None]:
    """Inside this context, graphs run on CPUs as they were traced.

    Before the first step, Grappler, TensorFlow's graph optimizer, takes time in proportion to the depth, and it does
    not make the steps of these graphs faster. On GPUs it chooses memory layouts, so there it stays on.
    """
    switch = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(switch, False)
    tf.config.optimizer.set_experimental_options({switch: before or not tf.config.list_physical_devices("GPU")})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({switch: before})


def fuse_update(optimizer: SGD) -> None:
    """Makes an SGD with momentum update each variable with one TensorFlow operation.

    Keras composes the update from a dozen operations per variable, half of them constants: nearly half of all that is
    traced before the first step. Results and saved files stay the same.

    Args:
        optimizer: one that has not been traced yet.
    """
    if optimizer.momentum:
        optimizer._backend_update_step = types.MethodType(_fused_update_of_all, optimizer)
        optimizer.update_step = types.MethodType(_fused_update, optimizer)  # type: ignore[method-assign]  # of this one


def _fused_update_of_all(optimizer, gradients, variables, learning_rate):
    """Creates the tensors for all variables once, and passes them as the learning rate, which Keras passes on."""
    rate = tf.convert_to_tensor(learning_rate)
    numbers = [rate, tf.cast(optimizer.momentum, rate.dtype), tf.cast(optimizer.weight_decay, rate.dtype)]
    if tf.distribute.has_strategy():
        type(optimizer)._backend_update_step(optimizer, gradients, variables, numbers)
    else:  # the same, without the sum over one device
        for gradient, variable in zip(gradients, variables, strict=True):
            optimizer.update_step(gradient, variable.value, numbers)


def _fused_update(optimizer, gradient, variable, numbers):
    learning_rate, momentum, weight_decay = (tf.cast(number, variable.dtype) for number in numbers)
    if optimizer.weight_decay and optimizer._use_weight_decay(variable):
        gradient += weight_decay * variable
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=optimizer.momentums[optimizer._get_variable_index(variable)].value.handle,
        lr=learning_rate,
        grad=gradient,
        momentum=momentum,
        use_nesterov=optimizer.nesterov,
    )
