"""The views of an image that the papers' evaluation protocols classify, with tf.data.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), AlexNet is Krizhevsky et al., 2012.
"""

import collections
import functools
import typing
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.choices import PROTOCOLS
from keras_resnet.data.crops import center_crop, resize_shorter_side, shorter_sides

# P1 3.4, for crops of IMAGE_SIZE. For another crop size all of them scale in proportion.
SCALES = (224, 256, 384, 480, 640)

DESCRIBED = ("resize", "interpolation", "crop", "views")
INTERPOLATION = "bilinear, antialiased, not rounded"
WAITING = 4  # batches of examples that may wait for others of the same shape


Pass: typing.TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class Protocol(typing.NamedTuple):
    """How an image is evaluated.

    `passes` are functions from an image (height, width, 3) to some of its views, float32 (views, height, width, 3), the
    same number in each pass. `any_size`: whether the views have several sizes. `description` is for output.
    """

    name: str
    passes: tuple[Pass, ...]
    any_size: bool
    description: dict[str, str]


def protocol(name: str, crop: int = IMAGE_SIZE) -> Protocol:
    """One of the protocols.

    Args:
        name: "center": the shorter side resized to 256, center crop.
            "10-crop": the shorter side resized to 256, four corner crops, center crop, and their mirror images
            (AlexNet, P1 3.4).
            "multi-scale": the whole image and its mirror image, with a shorter side of 224, 256, 384, 480 and 640
            (P1 3.4).
            "single": the image as it is (P1 4.2).
        crop: height and width of the crops. The numbers above are for 224; for other crops they scale in proportion,
            rounded.

    Returns:
        A `Protocol`.

    Raises:
        ValueError: the protocol is unknown, or the crop is not positive.
    """
    if crop < 1:
        raise ValueError(f"crop is a positive number of pixels; found {crop}")
    passes: tuple[Pass, ...]
    in_proportion = lambda size: round(size / IMAGE_SIZE * crop)
    side, scales = shorter_sides(crop)[0], [in_proportion(size) for size in SCALES]
    if name == "center":
        passes, any_size = (functools.partial(center, side=side, crop=crop),), False
        description = f"shorter side to {side}", INTERPOLATION, f"{crop}x{crop}, centre", "1"
    elif name == "10-crop":
        passes, any_size = (functools.partial(ten_crops, side=side, crop=crop),), False
        which = f"{crop}x{crop}, four corners and centre"
        description = f"shorter side to {side}", INTERPOLATION, which, "10, each crop and its mirror image"
    elif name == "multi-scale":
        passes, any_size = tuple(functools.partial(whole, side=side) for side in scales), True
        sides = f"shorter side to {', '.join(map(str, scales[:-1]))} and {scales[-1]}"
        which = "none, fully convolutional: scores before the softmax averaged over all positions of a view"
        description = sides, INTERPOLATION, which, f"{2 * len(scales)}, the image at each size and its mirror image"
    elif name == "single":
        passes, any_size = (single,), False
        description = "none", "none", "none", "1, the image as it is"
    else:
        raise ValueError(f"the protocol is one of {', '.join(PROTOCOLS)}; found {name!r}")
    return Protocol(name, passes, any_size, dict(zip(DESCRIBED, description, strict=True)))


def single(image: tf.Tensor) -> tf.Tensor:
    """The image as it is."""
    return tf.cast(image, "float32")[None]


def whole(image: tf.Tensor, side: int) -> tf.Tensor:
    """The image and its mirror image, with the shorter side resized to `side`."""
    image = resize_shorter_side(image, side)
    return tf.stack([image, image[:, ::-1]])


def center(image: tf.Tensor, side: int, crop: int) -> tf.Tensor:
    """The center crop; half a pixel up or left if it cannot be exact."""
    return center_crop(image, crop, side)[None]


def ten_crops(image: tf.Tensor, side: int, crop: int) -> tf.Tensor:
    """The four corner crops and the center crop, and then their mirror images."""
    image = resize_shorter_side(image, side)
    height, width = tf.unstack(tf.shape(image)[:2])
    bottom, right = height - crop, width - crop
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    crops = tf.stack([image[top : top + crop, left : left + crop] for top, left in corners])
    return tf.concat([crops, crops[:, :, ::-1]], axis=0)


def batches(
    examples: tf.data.Dataset, one_pass: Pass, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The views of every example once, in batches of one shape.

    Examples wait for others of the same shape, a few at a time to bound the memory; nothing is padded.

    Args:
        examples: a `tf.data.Dataset` of (image (height, width, 3), label).
        one_pass: one of the `passes` of a `Protocol`.
        batch_size: the largest number of views in a batch; a batch has at least the views of one example.

    Yields:
        The examples' indices, int64 (n,); their views, float32 (n * views, height, width, 3); their labels, (n,).
    """
    viewed = examples.enumerate().map(
        lambda index, example: (index, one_pass(example[0]), example[1]), num_parallel_calls=tf.data.AUTOTUNE
    )
    waiting = collections.defaultdict(list)
    for example in viewed.prefetch(batch_size).as_numpy_iterator():
        shape = example[1].shape
        waiting[shape].append(example)
        most = max(1, batch_size // shape[0])
        if len(waiting[shape]) == most:
            yield _stack(waiting.pop(shape))
        elif sum(map(len, waiting.values())) == WAITING * most:
            yield _stack(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    for group in waiting.values():
        yield _stack(group)


def _stack(group):
    indices, views, labels = zip(*group, strict=True)
    return np.array(indices), np.concatenate(views), np.array(labels)


def pick(examples: tf.data.Dataset, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The images of a few examples, in the order of `indices`. Reads the data set again, up to the last one."""
    wanted = tf.constant(indices, "int64")
    chosen = examples.enumerate().filter(lambda index, example: tf.reduce_any(index == wanted)).take(len(indices))
    images = {int(index): image for index, (image, _) in chosen.as_numpy_iterator()}
    return [images[int(index)] for index in indices]
