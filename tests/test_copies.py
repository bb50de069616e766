"""Every stock layer with state, in everything that copies a network: the copy has the outputs of the original."""

import inspect
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_resnet import evaluation, graphs, normalization, serving
from keras_resnet.analysis import gradient_norms
from keras_resnet.evaluation import protocols
from keras_resnet.graphs import fold
from keras_resnet.serving import exporting

SIZE = 8
RNG = np.random.default_rng(0)
IMAGES = (
    (RNG.uniform(0, 225, (4, 1, 1, 3)) + RNG.uniform(0, 30, (4, SIZE, SIZE, 3))).round().astype("float32")
)  # each has its own colour


def adapted(layer, data=IMAGES):
    layer.adapt(data)
    return layer


def lengthwise(layer):
    """For sequences (batch, positions, channels)."""
    return lambda x: layer(layers.Reshape((-1, 3 * SIZE))(layers.Rescaling(0.01)(x)))


def attention(layer):
    return lambda x: layers.GlobalAveragePooling1D()(lengthwise(layer)(x))


def in_time(layer):
    """For videos (batch, frames, rows, columns, channels)."""
    return lambda x: layer(layers.Reshape((-1, 4, 4, 3))(layers.Rescaling(0.01)(x)))


def in_each_frame(x):
    return layers.TimeDistributed(adapted(layers.Normalization(), 0.01 * IMAGES.reshape(-1, 4, 4, 3)))(x)


def tokens(x):
    return keras.ops.cast(x, "int64")


def shared(x):
    twice, bn = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    return bn(twice(bn(twice(x))))


def normalized(x):
    return layers.BatchNormalization()(layers.Conv2D(3, 3)(adapted(layers.Normalization())(x)))


def functional(x):
    inputs = keras.Input(x.shape[1:])
    network = keras.Model(inputs, normalized(inputs))
    return layers.Concatenate()([network(x), network(layers.ReLU()(x))])


def nested_deep(x):
    inner = keras.Sequential([keras.Input(x.shape[1:]), adapted(layers.Normalization()), layers.Conv2D(3, 1)])
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.2), layers.GaussianNoise(1.0)])
    outer = keras.Sequential([keras.Input(x.shape[1:]), augmentation, inner, layers.BatchNormalization()])
    return layers.Add()([outer(x), inner(augmentation(x))])


@keras.saving.register_keras_serializable("test_copies")
class Subclassed(keras.Model):
    """A model without a graph, whose layers cannot be traced."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.normalization, self.convolution = layers.Normalization(), layers.Conv2D(3, 1)

    def call(self, x):
        return self.convolution(self.normalization(x))


def subclassed(x):
    model = Subclassed()
    outputs = model(x)
    model.normalization.adapt(IMAGES)
    return outputs


def several_outputs(x):
    inputs = keras.Input(x.shape[1:])
    middle = adapted(layers.Normalization())(inputs)
    found = keras.Model(inputs, {"b": layers.Conv2D(3, 1)(middle), "a": [middle]})(x)
    return layers.Multiply()([found["b"], found["a"][0]])


def two_precisions(x):
    x = layers.Conv2D(4, 3, dtype="float64")(x)
    return layers.Conv2D(4, 3, dtype="float32")(x)


# Functions of images: (batch, rows, columns, channels) to the same.
OF_IMAGES = {
    "BatchNormalization": lambda x: layers.BatchNormalization()(x),
    "Conv2D": lambda x: layers.Conv2D(4, 3)(x),
    "Conv2DTranspose": lambda x: layers.Conv2DTranspose(4, 3)(x),
    "Dense": lambda x: layers.Dense(4)(x),
    "DepthwiseConv2D": lambda x: layers.DepthwiseConv2D(3)(x),
    "EinsumDense": lambda x: layers.EinsumDense("bhwc,cd->bhwd", (None, None, 4), bias_axes="d")(x),
    "GroupNormalization": lambda x: layers.GroupNormalization(1)(x),
    "LayerNormalization": lambda x: layers.LayerNormalization()(x),
    "Normalization": lambda x: adapted(layers.Normalization())(x),
    "Normalization of all channels": lambda x: adapted(layers.Normalization(axis=None))(x),
    "Normalization, inverted": lambda x: adapted(layers.Normalization(invert=True))(layers.Rescaling(0.01)(x)),
    "Normalization, given": lambda x: layers.Normalization(mean=[100, 110, 120], variance=[3e3, 4e3, 5e3])(x),
    "PReLU": lambda x: layers.PReLU(shared_axes=(1, 2))(layers.Rescaling(0.02, -2.5)(x)),
    "RMSNormalization": lambda x: layers.RMSNormalization()(x),
    "SeparableConv2D": lambda x: layers.SeparableConv2D(4, 3)(x),
    "SpectralNormalization": lambda x: layers.SpectralNormalization(layers.Conv2D(4, 3))(x),
    "shared": shared,
    "Functional": functional,
    "Sequential": nested_deep,
    "several outputs": several_outputs,
    "two precisions": two_precisions,
}
OF_OTHERS = {
    "AdditiveAttention": attention(lambda x: layers.AdditiveAttention()([x, x])),
    "Attention": attention(lambda x: layers.Attention(use_scale=True)([x, x])),
    "Bidirectional": lengthwise(lambda x: layers.Bidirectional(layers.GRU(2, return_sequences=True))(x)),
    "Conv1D": lengthwise(lambda x: layers.Conv1D(4, 3)(x)),
    "Conv1DTranspose": lengthwise(lambda x: layers.Conv1DTranspose(4, 3)(x)),
    "Conv3D": in_time(lambda x: layers.Conv3D(4, 3)(x)),
    "Conv3DTranspose": in_time(lambda x: layers.Conv3DTranspose(4, 3)(x)),
    "ConvLSTM1D": lambda x: layers.ConvLSTM1D(2, 3)(layers.Rescaling(0.01)(x)),
    "ConvLSTM2D": in_time(lambda x: layers.ConvLSTM2D(2, 3)(x)),
    "ConvLSTM3D": lambda x: layers.ConvLSTM3D(2, 2)(layers.Reshape((-1, 2, 2, 2, 3))(layers.Rescaling(0.01)(x))),
    "DepthwiseConv1D": lengthwise(lambda x: layers.DepthwiseConv1D(3)(x)),
    "Discretization": lambda x: layers.Rescaling(0.1)(adapted(layers.Discretization(num_bins=8))(x)),
    "Discretization, given": lambda x: layers.Rescaling(0.5)(layers.Discretization([50.0, 100.0, 180.0])(x)),
    "Embedding": lambda x: layers.Embedding(256, 3)(tokens(x)),
    "GRU": lengthwise(lambda x: layers.GRU(4)(x)),
    "GroupQueryAttention": attention(lambda x: layers.GroupQueryAttention(2, 2, 1)(x, x)),
    "IntegerLookup": lambda x: layers.Rescaling(0.01)(
        adapted(layers.IntegerLookup(), IMAGES.astype("int64"))(tokens(x))
    ),
    "IntegerLookup, given": lambda x: layers.Rescaling(0.01)(
        layers.IntegerLookup(vocabulary=[*range(50, 200)])(tokens(x))
    ),
    "LSTM": lengthwise(lambda x: layers.LSTM(4)(x)),
    "MultiHeadAttention": attention(lambda x: layers.MultiHeadAttention(2, 2)(x, x)),
    "RNN": lengthwise(lambda x: layers.RNN([layers.GRUCell(4), layers.LSTMCell(4), layers.SimpleRNNCell(4)])(x)),
    "ReversibleEmbedding": lambda x: layers.ReversibleEmbedding(256, 3)(tokens(x)),
    "SeparableConv1D": lengthwise(lambda x: layers.SeparableConv1D(4, 3)(x)),
    "SimpleRNN": lengthwise(lambda x: layers.SimpleRNN(4)(x)),
    "TimeDistributed": in_time(in_each_frame),
    "subclassed": subclassed,
}
# With state, but of texts, spectra and tables, of other frameworks, or tested in another layer ("RNN").
OTHERS = {
    *("StringLookup", "TextVectorization", "STFTSpectrogram", "FlaxLayer", "JaxLayer", "TFSMLayer"),
    *("GRUCell", "LSTMCell", "SimpleRNNCell"),
}
POOLS = {4: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling1D, 5: layers.GlobalAveragePooling3D}


def classifier(*fronts, size=SIZE):
    """A network for five classes after some training: no variable has its initial value."""
    inputs = x = keras.Input((size, size, 3))
    for front in fronts:
        x = front(x)
    if len(x.shape) > 2:
        x = POOLS[len(x.shape)]()(x)
    head = layers.BatchNormalization(epsilon=1e-5, dtype="float32")
    x = layers.Dense(5, name="fc")(head(x))
    model = keras.Model(inputs, layers.Softmax(dtype="float32")(x), name="network")
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        own = layer._trainable_variables + layer._non_trainable_variables
        for variable in [] if isinstance(layer, layers.Normalization) else own:
            value = rng.normal(0, 2 if layer.name == "fc" else 0.5, variable.shape)
            variable.assign(np.abs(value) + 0.1 if "variance" in variable.name else value)
    pooled = answers(keras.Model(inputs, head.input), enlarged(size or SIZE)).astype("float32")
    head.set_weights([*np.ones((1, pooled.shape[1])), np.zeros(pooled.shape[1]), pooled.mean(0), pooled.var(0)])
    return model


def enlarged(size):
    return IMAGES.repeat(size // SIZE, 1).repeat(size // SIZE, 2)


def answers(model, images=IMAGES):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def check_answers(expected, found, tolerance=1e-5):
    assert np.ptp(expected, axis=0).max() > 100 * tolerance  # the images differ
    np.testing.assert_allclose(found, expected, atol=tolerance)


def check(model, copied):
    check_answers(answers(model), answers(copied))
    assert not {id(layer) for layer in model._flatten_layers()} & {id(layer) for layer in copied._flatten_layers()}


def test_no_stock_layer_with_state_is_missing():
    found = set()
    for layer in vars(layers).values():
        if inspect.isclass(layer) and issubclass(layer, layers.Layer) and layer is not layers.Layer:
            bases = [base for base in layer.__mro__ if issubclass(base, layers.Layer) and base is not layers.Layer]
            if any(
                "add_weight(" in (code := inspect.getsource(base)) or "def finalize_state" in code for base in bases
            ):
                found.add(layer.__name__)
    assert found - {name.split(",")[0].split()[0] for name in OF_IMAGES | OF_OTHERS} == OTHERS


@pytest.mark.parametrize("name", OF_IMAGES | OF_OTHERS)
def test_a_copy_is_the_same(name):
    model = classifier((OF_IMAGES | OF_OTHERS)[name])
    before = model.get_weights()
    check(model, graphs.copy(model))
    check(model, fold(model))
    if name in OF_IMAGES:
        check(model, protocols._any_size(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


CHAIN = (
    *("Normalization", "Conv2D", "PReLU", "BatchNormalization", "Conv2DTranspose", "Dense", "DepthwiseConv2D"),
    *("EinsumDense", "GroupNormalization", "LayerNormalization", "RMSNormalization", "SeparableConv2D"),
    "SpectralNormalization",
)
NETWORKS = {
    "chain": lambda: classifier(*map(OF_IMAGES.get, CHAIN)),
    "nested": lambda: classifier(*map(OF_IMAGES.get, ("Sequential", "several outputs", "shared"))),
    "tokens": lambda: classifier(OF_OTHERS["IntegerLookup"]),
}


def test_gradient_norms_are_those_of_the_network():
    model, labels = NETWORKS["chain"](), np.arange(4)
    found = gradient_norms(model, IMAGES, labels)
    kernels = [layer.kernel.value for layer in model.layers if layer.name in found]
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(labels, model(IMAGES, training=True))
    assert [*found.values()] == pytest.approx([float(tf.norm(g)) for g in tape.gradient(loss, kernels)], rel=1e-3)
    assert len(found) == 3 and min(found.values()) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_model_answers_as_the_network(tmp_path, name):
    model = NETWORKS[name]()
    served = tf.saved_model.load(serving.export(model, tmp_path / "m")).signatures["serving_default"]
    check_answers(answers(model), served(images=tf.constant(IMAGES))["probabilities"], 1e-3)


@pytest.mark.parametrize("format", ["openvino", "onnx", "litert"])
def test_other_runtimes_answer_as_the_network(tmp_path, format):
    """With flips and rotations, which the exporters do not support; each export compares the outputs."""
    assert serving.export(NETWORKS["nested"](), tmp_path / "m", format=format)


def test_other_runtimes_are_compared_with_the_network_that_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "fold", lambda model, *options: keras.models.clone_model(model))
    with pytest.raises(serving.ExportError, match=r"network in onnx differs from the network by "):
        serving.export(classifier(OF_IMAGES["Conv2D"]), tmp_path / "m", format="onnx")


def test_a_network_of_16_bits_may_differ_by_its_rounding(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier(OF_IMAGES["Conv2D"], OF_IMAGES["BatchNormalization"])
    finally:
        keras.config.set_dtype_policy("float32")
    about = json.loads(pathlib.Path(serving.export(model, tmp_path / "m", format="onnx"), "about.json").read_text())
    assert 1e-5 < about["largest_difference"] < 0.05


def test_many_scales_see_what_was_adapted():
    """A network of one size, and the same network of any size."""
    front = lambda x: layers.Conv2D(4, 3)(adapted(layers.Normalization())(x))
    model, any_size = classifier(front, size=32), classifier(front, size=None)
    any_size.set_weights(model.get_weights())
    any_size.layers[1].finalize_state()
    labels = answers(any_size, enlarged(32)).argmax(axis=1)
    assert len(set(labels)) > 1
    examples = tf.data.Dataset.from_tensor_slices((enlarged(32), labels))
    options = {"classes": list("abcde"), "protocol": "multi-scale", "crop": 32, "verbose": 0}
    one, other = (evaluation.evaluate(network, examples, **options) for network in (model, any_size))
    check_answers(other.probabilities, one.probabilities)
    assert (one.predictions == labels).all()


def test_a_network_without_a_graph_is_refused():
    for function in (graphs.copy, fold):
        with pytest.raises(ValueError, match="subject is neither functional nor sequential"):
            function(Subclassed(name="subject"))


def test_several_outputs_and_inputs_keep_their_names_and_structure():
    inputs = {name: keras.Input((4,), name=name) for name in "ba"}
    network = keras.Model(
        inputs, {"sum": layers.Add()([inputs["a"], layers.Dense(4)(inputs["b"])]), "rest": [inputs["a"]]}
    )
    x = {name: np.random.default_rng(i).normal(size=(2, 4)).astype("float32") for i, name in enumerate("ab")}
    expected, found = answers(network, x), answers(graphs.copy(network), x)
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


AUGMENTATIONS = [
    name for name in sorted(vars(layers)) if name.startswith("Random") or name in normalization.TRAINING_ONLY
]
ARGUMENTS = {
    "RandomCrop": (4, 4),
    "RandomInvert": (),
    **dict.fromkeys(("RandomBrightness", "RandomRotation", "RandomContrast", "RandomZoom", "RandomHue"), (0.5,)),
    **dict.fromkeys(("RandomColorDegeneration", "RandomSaturation", "RandomSharpness", "RandomPosterization"), (0.5,)),
    **dict.fromkeys(("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"), (0.5,)),
    **dict.fromkeys(("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"), (0.5,)),
    "RandomPosterization": (4,),
    "RandomTranslation": (0.5, 0.5),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_layers_that_act_in_training_only_are_left_out(name):
    """Except RandomCrop, which always acts."""
    shape = {"SpatialDropout1D": (8, 3), "SpatialDropout3D": (2, 4, 8, 3)}.get(name, (8, 8, 3))
    layer = getattr(layers, name)(*ARGUMENTS.get(name, ()))
    model = keras.Sequential([keras.Input(shape), layer, layers.Rescaling(0.5)])
    images = IMAGES.reshape(-1, *shape)
    folded = fold(model)
    np.testing.assert_array_equal(answers(folded, images), answers(model, images))
    assert (layer.name in {kept.name for kept in folded.layers}) == (name == "RandomCrop")


def test_what_makes_floats_of_integers_stays():
    model = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), layers.RandomFlip(), layers.Conv2D(3, 1)])
    pixels = IMAGES.astype("uint8")
    np.testing.assert_allclose(answers(fold(model), pixels), answers(model, pixels), rtol=1e-5, atol=1e-3)


def test_other_layers_of_these_names_stay():
    @keras.saving.register_keras_serializable("test_copies")
    class Dropout(layers.Dropout):
        def call(self, x, training=False):
            return 2 * x

    model = keras.Sequential([keras.Input((8, 8, 3)), Dropout(0.5)])
    np.testing.assert_array_equal(answers(fold(model)), 2 * IMAGES)
