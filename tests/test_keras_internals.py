"""Canaries for the internals of Keras and TensorFlow that this package uses. If one changes, its message explains it.

`REACHED` has every place; `test_all_places_are_known` finds one that is missing.
"""

import ast
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from tensorflow.python.distribute import collective_all_reduce_strategy

from keras_resnet.weights import tensors


def network():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, name="conv")(inputs)
    return keras.Model(inputs, keras.layers.Add(name="add")([keras.layers.ReLU()(x), keras.layers.Softmax()(x)]))


def history():
    model = network()
    return model.get_layer("conv").output._keras_history.operation is model.get_layer("conv")


def nodes():
    conv = network().get_layer("conv")
    return len(conv._inbound_nodes) == 1


def nodes_by_depth():
    found = [node.operation.name for nodes in network()._nodes_by_depth.values() for node in nodes]
    return {"conv", "add"} < set(found) and len(found) == 5


def flattened():
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.BatchNormalization(name="bn")])
    return "bn" in {layer.name for layer in keras.Sequential([inner])._flatten_layers()}


def decaying():
    optimizer = keras.optimizers.SGD()
    kernel, bias = keras.Variable(np.ones(1), name="kernel"), keras.Variable(np.ones(1), name="bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([kernel, bias])
    return (optimizer._use_weight_decay(kernel), optimizer._use_weight_decay(bias)) == (True, False)


def update_of_all():
    takes = inspect.signature(keras.optimizers.SGD._backend_update_step).parameters
    optimizer, variables = keras.optimizers.SGD(), [keras.Variable(np.ones(1)) for _ in range(2)]
    optimizer.build(variables)
    order = [optimizer._get_variable_index(variable.value) for variable in variables]
    return list(takes) == ["self", "grads", "trainable_variables", "learning_rate"] and order == [0, 1]


def initial_epoch():
    epochs = []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")

    class Later(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model._initial_epoch = 2

        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)

    model.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=3, verbose=0, callbacks=[Later()])
    return epochs == [2]


def several_workers(*names):
    source = inspect.getsource(collective_all_reduce_strategy)
    return lambda: all(f"self.{name} =" in source for name in names)


def flip():
    pixels = keras.Input((4, 4, 3))
    operation = keras.Model(pixels, keras.ops.flip(pixels, axis=-1)).operations[-1]
    return type(operation).__name__ == "Flip" and operation.axis == -1


REACHED = {
    "_keras_history": (history, "a symbolic tensor no longer says which layer it is of: evaluation, analysis"),
    "_inbound_nodes": (nodes, "a layer no longer says how what it is called with: graphs.fold"),
    "_nodes_by_depth": (nodes_by_depth, "a model no longer lists its calls of layers: graphs.fold"),
    "_flatten_layers": (flattened, "a model no longer gives the layers of inner models: graphs, recalibrate_bn"),
    "_use_weight_decay": (decaying, "an optimizer no longer says which variables decay: optimizers.SGD"),
    "_backend_update_step": (update_of_all, "an optimizer updates its variables in another way: fused.fuse_update"),
    "_get_variable_index": (update_of_all, "an optimizer numbers its variables in another way: fused.fuse_update"),
    "_initial_epoch": (initial_epoch, "a callback can no longer set the first epoch of fit: optimizers"),
    "_id_in_cluster": (several_workers("_id_in_cluster"), "a strategy no longer says its number: distribution"),
    "_num_workers": (several_workers("_num_workers"), "a strategy no longer counts its workers: distribution"),
    "_task_type": (several_workers("_task_type"), "a strategy no longer says its task: distribution"),
    "_task_id": (several_workers("_task_id"), "a strategy no longer says its task: distribution"),
    "Flip": (flip, "the operation of keras.ops.flip has another name or axis: normalization.of, readers"),
}


@pytest.mark.parametrize("place", REACHED)
def test_canary(place):
    works, sentence = REACHED[place]
    try:
        found = works()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    assert found is True, f"Keras {keras.__version__}, TensorFlow {tf.__version__}, {place}: {sentence}. {found}"


def private(name):
    return name.startswith("_") and not name.startswith("__")


def places(tree):
    """Private names of other packages that a module uses: attributes, words of `getattr`, and modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            yield from (word.value for word in node.args[1:2] if private(str(getattr(word, "value", ""))))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield from (module for module in modules if module.startswith(("keras.src", "tensorflow.python")))


def own_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_all_places_are_known():
    files = [*(ROOT / "keras_resnet").rglob("*.py"), *(ROOT / "train").rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in files]
    own = {name for tree in trees for name in own_names(tree)} | set(dir(tensors.Source))
    found = {place for tree in trees for place in places(tree)} - own
    assert {"_keras_history", "_use_weight_decay", "_num_workers"} <= found
    assert found <= REACHED.keys(), "private parts of Keras or TensorFlow without a canary in REACHED"
