"""The papers' evaluation protocols for classifiers: one crop, ten crops, whole images at several scales, and ensembles.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). Scores are always probabilities: each network
predicts probabilities of the classes for each view of an image; the result is the mean over views and networks.

With several scales a network is applied to the whole image, fully convolutionally (P1 3.4). If it ends with average
pooling and a fully connected layer, classifying the mean of the last feature map is the same as classifying each of its
positions and averaging the outputs before the softmax. The paper does not state whether its 7x7 pooling slides over a
larger map; here the pooling covers the whole map.
"""

import typing
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import graphs
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.evaluation import views
from keras_resnet.evaluation.results import EvaluationError, Result
from keras_resnet.files import Path, own_line, reason
from keras_resnet.runs import Run

Item = typing.TypeVar("Item")
Several: typing.TypeAlias = list[Item] | tuple[Item, ...]
Preprocess: typing.TypeAlias = Callable[[np.ndarray], typing.Any] | None  # to what the classifier takes


# Layers that may follow a classifier's last activation.
LOOKED_THROUGH = tuple(
    getattr(keras.layers, name)
    for name in ("Average", "AveragePooling2D", "Dropout", "Flatten", "GlobalAveragePooling2D", "Identity", "Reshape")
)


def default_crop(paths: Sequence[Path], models: Sequence[keras.Model]) -> int:
    """The default size of the crops, in pixels, for the evaluation of models.

    Args:
        paths: the paths from which they were loaded.
        models: the loaded `keras.Model` objects.

    Returns:
        The training crop size, for models of ImageNet-style images; otherwise the models' input size; otherwise the
        paper's 224.

    Raises:
        EvaluationError, RunError: the models' sizes differ, or a run's settings are damaged.
    """
    sizes = {}
    for path, model in zip(paths, models, strict=True):
        sizes[path] = Run(path).crop or _input_size(model)[0]
    known = set(sizes.values()) - {None}
    if len(known) > 1:
        found = ", ".join(f"{path} {size}" for path, size in sizes.items())
        raise EvaluationError(f"the models are tested with crops of different sizes: {found}. Give --crop.")
    return known.pop() if known else IMAGE_SIZE


def evaluate(
    classifiers: keras.Model | Several[keras.Model], examples: tf.data.Dataset, classes: Sequence[str],
    protocol: str = "center", *, crop: int = IMAGE_SIZE, batch_size: int = 32,
    preprocess: Preprocess | Several[Preprocess] = None, verbose: int = 1,
) -> Result:  # fmt: skip
    """Evaluates a classifier, or several as an ensemble (P1 Table 5), on every example once.

    Args:
        classifiers: a `keras.Model`, or a list of them. Input: (batch, height, width, 3). Output: (batch, classes),
            probabilities or logits. A softmax is applied to logits, which `gives_logits` recognises.
        examples: a `tf.data.Dataset` of (image, label), unbatched and in the same order each time it is read. Images:
            (height, width, 3), RGB in [0, 255]. Labels: integers in [0, classes).
        classes: the classes' names.
        protocol: "center", "10-crop", "multi-scale" or "single"; `evaluation.views.protocol` describes them.
        crop: height and width of the crops; 224 in the paper, and all other sizes scale in proportion.
        batch_size: views in a forward pass. Affects the result only by rounding.
        preprocess: a function from float32 (batch, height, width, 3) in [0, 255] to the classifiers' input, for example
            `keras.applications.resnet.preprocess_input`; or a list with one for each classifier; or None for
            classifiers that take pixels, such as the models of `train/fit.py`.
        verbose: 1 for a progress bar, 0 for silence.

    Returns:
        A `Result`.

    Raises:
        EvaluationError: a classifier does not fit the views or the classes, or has outputs that are not finite; or
            there are no examples, or their order changes.
        ValueError: the protocol is unknown, or there is no classifier, or not one `preprocess` for each.
    """
    plan = views.protocol(protocol, crop)
    classifiers = list(classifiers) if isinstance(classifiers, (list, tuple)) else [classifiers]
    preprocess = preprocess if isinstance(preprocess, (list, tuple)) else [preprocess] * len(classifiers)
    if not 0 < len(classifiers) == len(preprocess):
        raise ValueError(f"each classifier has one preprocess; found {len(classifiers)} and {len(preprocess)}")
    members = [_Member(_compiled(model, plan), p) for model, p in zip(classifiers, preprocess, strict=True)]
    for member in members:
        _check(member, examples, plan, len(classes))
    softmax = [gives_logits(model) for model in classifiers]

    n = int(examples.cardinality())  # negative if it is not known
    progress = keras.utils.Progbar(n * len(plan.passes) if n > 0 else None, unit_name="image", verbose=verbose)
    labels: np.ndarray = np.zeros(0, "int64")
    total: np.ndarray = np.zeros(())
    with own_line(verbose):
        for one_pass in plan.passes:
            indices, labels_of_batches, scores = [], [], []
            for batch_indices, batch, batch_labels in views.batches(examples, one_pass, batch_size):
                if not 0 <= batch_labels.min() <= batch_labels.max() < len(classes):
                    found = f"{batch_labels.min()} to {batch_labels.max()}"
                    raise EvaluationError(
                        f"with {len(classes)} classes a label is in [0, {len(classes)}); found {found}"
                    )
                scores.append(_mean_probabilities(members, softmax, batch, len(batch_indices)))
                indices.append(batch_indices)
                labels_of_batches.append(batch_labels)
                progress.add(len(batch_indices))
            order = np.argsort(np.concatenate(indices))
            pass_labels = np.concatenate(labels_of_batches)[order].astype("int64")
            if len(labels) and not np.array_equal(labels, pass_labels):
                raise EvaluationError("the examples came in another order when read again; do not shuffle them")
            labels, total = pass_labels, total + np.concatenate(scores)[order]
    description = {"name": plan.name, **plan.description, "averaging": _averaging(len(members), plan)}
    return Result(description, tuple(classes), labels, (total / len(plan.passes)).astype("float32"))


class _Member(typing.NamedTuple):
    """A classifier of an ensemble, and its preprocessing."""

    model: keras.Model
    preprocess: typing.Callable | None

    def __call__(self, images, compiled=True):
        """float32 (batch, height, width, 3) in [0, 255] to the classifier's outputs, float64 (batch, classes)."""
        _check_size(self.model, images)
        if self.preprocess is not None:
            images = self.preprocess(images.copy())  # a copy, because keras.applications preprocesses in place
        outputs = self.model.predict_on_batch(images) if compiled else self.model(images, training=False)
        outputs = keras.ops.convert_to_numpy(outputs).astype("float64")
        if not np.isfinite(outputs).all():
            raise EvaluationError(f"{self.model.name} gives outputs that are not finite; has its training diverged?")
        return outputs


def _mean_probabilities(members, softmax, batch, n):
    """The mean over the members and over the views of each of the `n` examples: float64 (n, classes)."""
    total = 0
    for member, apply_softmax in zip(members, softmax, strict=True):
        outputs = member(batch)
        if apply_softmax:
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            outputs /= outputs.sum(axis=1, keepdims=True)
        total = total + outputs.reshape(n, -1, outputs.shape[1]).mean(axis=1)
    return total / len(members)


def gives_logits(model: keras.Model) -> bool:
    """Whether a classifier's outputs are logits, according to its last layers.

    Args:
        model: a functional `keras.Model`. Its last activation may be followed by averages, over positions or several
            networks, and by layers that change no value.

    Returns:
        True for a linear last layer, and for a log-softmax, which a softmax also turns into probabilities; False for a
        softmax and for sigmoids, whose outputs are used as they are.

    Raises:
        EvaluationError: the model ends with anything else.
    """
    ends = _last_activations(model)
    if ends in ({"linear"}, {"logsoftmax"}):
        return True
    if ends in ({"softmax"}, {"sigmoid"}):
        return False
    found = " and ".join(sorted(ends)) or "no known layer"
    raise EvaluationError(
        f"{model.name} ends in {found}; a classifier ends in a softmax, in sigmoids or, for logits, in a linear layer. "
        'Add keras.layers.Softmax() or keras.layers.Activation("sigmoid") to it.'
    )


def _last_activations(model):
    """The names of the functions, or the kinds of layers, whose values are the outputs of a model."""
    ends, tensors = set(), list(getattr(model, "outputs", None) or ())
    while tensors:
        layer, call, output = tensors.pop()._keras_history
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
        if isinstance(layer, keras.Model):
            tensors.append(layer.outputs[output])
        elif isinstance(layer, LOOKED_THROUGH) or (isinstance(layer, keras.layers.Activation) and name == "linear"):
            tensors += layer._inbound_nodes[call].input_tensors
        else:
            ends.add(name.lower().replace("_", ""))
    return ends


def _averaging(members, plan):
    several_views = len(plan.passes) > 1 or plan.name == "10-crop"
    over = ["views"] * several_views + [f"{members} models"] * (members > 1)
    return "mean of the probabilities over " + " and ".join(over) if over else "none"


def _compiled(model, plan):
    """The same network, compiled without XLA, which would compile again for each image size."""
    if plan.any_size:
        model = _any_size(model)
    inputs = keras.Input(_input_size(model) + (3,))
    compiled = keras.Model(inputs, model(inputs), name=model.name)
    compiled.compile(jit_compile=False)
    return compiled


def _input_size(model):
    """(height, width) of a classifier's input images; None for any."""
    shape = getattr(model, "input_shape", (None, None, None, 3))
    if len(shape) != 4 or shape[-1] not in (None, 3):
        raise EvaluationError(
            f"{model.name} has the input shape {shape}; a classifier of images has (batch, height, width, 3)"
        )
    return tuple(shape[1:3])


def _any_size(model):
    """The model, or a copy of it that takes images of any size."""
    size = _input_size(model)
    if size == (None, None):
        return model
    try:
        return graphs.copy(model, _without_mean_image, inputs=_input_of_any_size)
    except Exception as error:  # its layers may raise anything
        raise EvaluationError(_not_convolutional(model, error)) from error


def _input_of_any_size(tensor):
    shape = (None, None, None, *tensor.shape[3:]) if len(tensor.shape) == 4 else tensor.shape
    return keras.Input(batch_shape=shape, dtype=tensor.dtype)


def _without_mean_image(layer):
    """A copy of a layer; if it subtracts a mean image, the copy subtracts the image's mean colour."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Rescaling):
        images = {name: config[name] for name in ("scale", "offset") if np.ndim(config[name]) == 3}
        config |= {name: np.mean(image, axis=(0, 1)).tolist() for name, image in images.items()}
    return type(layer).from_config(config)


def _not_convolutional(model, error):
    return (
        f"{model.name} does not take images of any size, which the protocol multi-scale needs: {reason(error)}\n"
        "Choose another protocol, or a network that ends in global average pooling."
    )


def _check_size(model, images):
    if images.shape[-1] != 3:
        raise EvaluationError(f"images are (height, width, 3), RGB; found {images.shape[-1]} channels")
    wanted, found = _input_size(model), images.shape[1:3]
    if any(length not in (None, there) for length, there in zip(wanted, found, strict=True)):
        raise EvaluationError(
            f"{model.name} takes images of {_by(wanted)}, and this protocol gives it {_by(found)}; "
            f"choose another protocol or, with crops, the crop {wanted[0]}"
        )


def _check(member, examples, plan, classes):
    """Runs a classifier on the first example in every size.

    It runs before the evaluation, to report errors early.
    """
    outputs = []
    for one_pass in plan.passes:
        for _, batch, _ in views.batches(examples.take(1), one_pass, 1):
            try:
                outputs.append(member(batch, compiled=False))
            except EvaluationError:
                raise
            except Exception as error:  # its layers may raise anything
                if plan.any_size:
                    raise EvaluationError(_not_convolutional(member.model, error)) from error
                raise
    if not outputs:
        raise EvaluationError("there are no examples")
    for output in outputs:
        if output.ndim != 2:
            raise EvaluationError(f"{member.model.name} is not a classifier: its output for an image is {output.shape}")
        if output.shape[1] != classes:
            raise EvaluationError(
                f"{member.model.name} has {output.shape[1]} classes and the data {classes}; a model is tested on the "
                "classes that it was trained for"
            )


def _by(size):
    return "x".join("any" if length is None else str(length) for length in size)
