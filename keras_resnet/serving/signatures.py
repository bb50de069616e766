"""The signatures of a served classifier: pixels or image files in, classes and their probabilities out.

The graph of a SavedModel contains everything: decoding, resizing, cropping, the network and the class names.
"""

import pathlib
import typing
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_resnet.choices import MAX_PIXELS
from keras_resnet.data import crops, imagenet
from keras_resnet.evaluation import views
from keras_resnet.files import Path

if typing.TYPE_CHECKING:  # an optional package
    from tensorflow_serving.apis import prediction_log_pb2

SMALL = 64  # a network with inputs up to this size sees whole images, as in CIFAR's test (P1 4.2)
DECODED_AT_ONCE = 16
LEAST, MOST = RANGE = (0, 255)  # of pixels
ROUNDING = 0.5  # the error of resizing in floating point
PNG, PNG_SIZE = b"\x89PNG\r\n\x1a\n", 16  # the first bytes of a file; offset of width and height, 4 bytes each
FILE = "image/encoded"  # the feature of a tf.Example, as ImageNet's records have it
CLASSIFY = "classify"


class Preprocessing(typing.NamedTuple):
    """How a file becomes an image, in pixels: the shorter side is resized, and the center of size `crop` is cropped."""

    shorter_side: int
    crop: int
    interpolation: str = views.INTERPOLATION


def preprocessing(crop: int, shorter_side: int | None = None) -> Preprocessing:
    """The evaluation's protocol "center" for a network that takes `crop` x `crop` pixels; up to 64, "single"."""
    return Preprocessing(shorter_side or (crop if crop <= SMALL else crops.shorter_sides(crop)[0]), crop)


def save(
    model: keras.Model, path: Path, classes: Sequence[str], top_k: int, preprocess: Preprocessing,
    max_pixels: int = MAX_PIXELS, range_check: bool = True,
) -> dict[str, dict[str, dict[str, dict]]]:  # fmt: skip
    """Writes a SavedModel with the signatures.

    Args:
        model: a `keras.Model` from float32 (batch, height, width, 3), RGB in [0, 255], to probabilities
            (batch, classes).
        path: the folder to make.
        classes: the names of the classes.
        top_k: the number of classes in `classes`, `scores` and `labels`.
        preprocess: a `Preprocessing`.
        max_pixels: limit for images in files; a request with a larger one fails before it is decoded.
        range_check: whether a request fails if its float32 images are not in [0, 255], or seem to be in [0, 1].

    Returns:
        The signatures, for clients that have no TensorFlow: {signature: {"inputs" and "outputs": {name: {"dtype": for
        example "float32", "shape": a list}}}}; a variable length is None.
    """
    names, pixels = tf.constant(classes), model.input_shape

    @tf.function(input_signature=[tf.TensorSpec(pixels, "float32")], autograph=False)
    def answer(images):
        n, shape = tf.shape(images)[0], tf.shape(images)[1:]
        one = lambda: tf.zeros(tf.concat([[1], shape], 0))  # oneDNN's convolutions refuse an empty batch
        probabilities = model(tf.cond(n > 0, lambda: images, one), training=False)[:n]
        scores, numbers = tf.math.top_k(probabilities, top_k)
        labels = tf.gather(names, numbers)
        return {"probabilities": probabilities, "classes": numbers, "scores": scores, "labels": labels}

    def serving_default(images):
        images = tf.ensure_shape(images, pixels)  # a session does not check what it is fed
        images = tf.debugging.check_numerics(images, "pixels")
        return answer(_in_range(images) if range_check else images)

    def predict_uint8(images):
        return answer(tf.cast(tf.ensure_shape(images, pixels), "float32"))

    def predict_bytes(image_bytes):
        return answer(decode(image_bytes, preprocess, max_pixels))

    def classify(inputs):
        examples = tf.io.parse_example(inputs, {FILE: tf.io.FixedLenFeature((), "string")})
        answers = predict_bytes(examples[FILE])
        return {"classes": answers["labels"], "scores": answers["scores"]}

    archive = keras.export.ExportArchive()
    archive.track(model)  # for its lookup tables; the variables are found without it
    for function, spec in (
        (serving_default, tf.TensorSpec(pixels, "float32", "images")),
        (predict_uint8, tf.TensorSpec(pixels, "uint8", "images")),
        (predict_bytes, tf.TensorSpec((None,), "string", "image_bytes")),
        (classify, tf.TensorSpec((None,), "string", "inputs")),
    ):
        archive.add_endpoint(function.__name__, function, [spec])
    archive.write_out(path, verbose=False)
    methods = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(path)
    methods.replace_method_name(CLASSIFY, tf.compat.v1.saved_model.CLASSIFY_METHOD_NAME)
    methods.save()
    return _describe(path)


def _describe(path):
    saved = saved_model_pb2.SavedModel.FromString(pathlib.Path(path, "saved_model.pb").read_bytes())
    tensors = lambda infos: {
        name: {"dtype": tf.dtypes.as_dtype(info.dtype).name, "shape": tf.TensorShape(info.tensor_shape).as_list()}
        for name, info in sorted(infos.items())
    }
    signatures = sorted(saved.meta_graphs[0].signature_def.items())
    return {
        name: {"inputs": tensors(found.inputs), "outputs": tensors(found.outputs)}
        for name, found in signatures
        if found.inputs  # not the initialisation
    }


def _in_range(images):
    """Images (batch, height, width, 3). Fails if one is not in [0, 255], or is in [0, 1] and not black."""
    least, most = tf.reduce_min(images, [1, 2, 3]), tf.reduce_max(images, [1, 2, 3])
    in_range = (least > LEAST - ROUNDING) & (most < MOST + ROUNDING) & ((most > 1) | (most <= 0))
    wrong = tf.where(~in_range)[:, 0]
    what = [
        "pixels are RGB in [0, 255], not divided by 255 and not normalised (unless exported with --no-range-check): "
        "wrong images, by index in this batch",
        wrong,
        "their smallest and largest pixels",
        tf.gather(least, wrong),
        tf.gather(most, wrong),
    ]
    with tf.control_dependencies([tf.debugging.Assert(tf.size(wrong) == 0, what, summarize=20)]):
        return tf.identity(images)


def decode(files: tf.Tensor, preprocess: Preprocessing, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decodes a batch of image files.

    Args:
        files: string (batch,), the contents of JPEG or PNG files.
        preprocess: a `Preprocessing`.
        max_pixels: a file with more according to its header is not decoded.

    Returns:
        float32 (batch, crop, crop, 3), RGB in [0, 255]. If one of the files cannot be decoded, running the graph
        fails with an InvalidArgumentError that says which ones, counted from 0.
    """
    side, crop, _ = preprocess

    def image(file):
        with tf.control_dependencies([tf.debugging.assert_less_equal(_pixels(file), tf.constant(max_pixels, "int64"))]):
            return (crops.center_crop(crops.decode(tf.identity(file)), crop, side),)

    _, lost, (images,) = imagenet.attempt(image, (files,), DECODED_AT_ONCE)
    what = [
        f"not a JPEG or PNG image, or damaged, or of more than {max_pixels} pixels: files, by index in this batch",
        lost,
    ]
    with tf.control_dependencies([tf.debugging.Assert(tf.size(lost) == 0, what, summarize=20)]):
        return tf.ensure_shape(images, (None, crop, crop, 3))


def _pixels(file):
    """The number of pixels in the header of a JPEG or PNG file, int64; for other files above any limit, or an error."""

    def png():
        is_png = tf.strings.substr(file, 0, len(PNG)) == PNG
        size = tf.io.decode_raw(tf.strings.substr(file, PNG_SIZE, 8), "int32", little_endian=False)
        return tf.where(is_png, size, tf.int32.max)

    size = tf.cond(crops.is_jpeg(file), lambda: tf.io.extract_jpeg_shape(file)[:2], png)
    return tf.reduce_prod(tf.cast(size, "int64"))


def warmup_requests(
    name: str, input_shape: tuple[int | None, ...], crop: int,
) -> "Iterator[prediction_log_pb2.PredictionLog]":  # fmt: skip
    """One request for each signature, with one grey image, which TF Serving runs before it reports that it is ready.

    Args:
        name: the model's name.
        input_shape: (batch, height, width, 3) of the network; None is any.
        crop: size of the image in pixels, if the network takes any.

    Yields:
        A `PredictionLog` for each request.
    """
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    pixels = tf.fill([1, *(length or crop for length in input_shape[1:3]), 3], 128.0)
    file = tf.io.encode_jpeg(tf.cast(pixels[0], "uint8")).numpy()
    for signature, argument, value in (
        ("serving_default", "images", pixels),
        ("predict_uint8", "images", tf.cast(pixels, "uint8")),
        ("predict_bytes", "image_bytes", tf.constant([file])),
    ):
        spec = model_pb2.ModelSpec(name=name, signature_name=signature)
        request = predict_pb2.PredictRequest(model_spec=spec, inputs={argument: tf.make_tensor_proto(value)})
        yield prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    request = classification_pb2.ClassificationRequest(model_spec={"name": name, "signature_name": CLASSIFY})
    example = request.input.example_list.examples.add()
    example.features.feature[FILE].bytes_list.value.append(file)
    yield prediction_log_pb2.PredictionLog(classify_log=prediction_log_pb2.ClassifyLog(request=request))
