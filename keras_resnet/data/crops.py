"""Decodes, resizes and crops image files as in P1 3.4, with TensorFlow.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).

JPEG (RGB, greyscale and CMYK), PNG (of any kind), WebP without animation, BMP without a palette and the first frame of
a GIF are decoded to RGB, whatever the file's name; transparency is dropped. The EXIF orientation of a camera is
ignored, as in ImageNet benchmarks.
"""

import functools

import numpy as np
import tensorflow as tf

from keras_resnet.architecture import IMAGE_SIZE

SHORTER_SIDES = (256, 480)  # P1 3.4, for crops of 224; for other sizes in proportion
JPEG = b"\xff\xd8\xff"  # the first bytes of a JPEG file
DCT = "INTEGER_ACCURATE"  # of JPEG: the pixels that Pillow decodes; TensorFlow's default, the fast one, gives others
HEAD = 29  # bytes of a file that tell its kind
BMP_WITH_PALETTE = r"BM\C{26}\x08"  # of a BMP file with 8 bits per pixel; TensorFlow ignores its palette
WEBP = r"RIFF\C{4}WEBP\C*"
MOVING = "".join(rf"\x{flags:02x}" for flags in range(64) if flags & 2)
MOVING_WEBP = rf"RIFF\C{{4}}WEBPVP8X\C{{4}}[{MOVING}]\C*"  # animated
RATIOS = (1, 2, 4, 8)  # by which the JPEG decoder can shrink an image


def is_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Whether the content of a file, a string, is a JPEG: bool."""
    return tf.strings.substr(data, 0, len(JPEG)) == JPEG


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes the content of an image file, a string: uint8 (height, width, 3), RGB."""

    def begins(pattern):
        return tf.strings.regex_full_match(tf.strings.substr(data, 0, HEAD), pattern)

    def refusing(pattern, kind):
        return tf.control_dependencies([tf.debugging.Assert(~begins(pattern), [f"{kind}; convert it"])])

    def other():
        with refusing(BMP_WITH_PALETTE, "a BMP file with a palette"):
            return tf.cond(begins(WEBP), webp, usual)

    def webp():
        with refusing(MOVING_WEBP, "an animated WebP"):
            return tf.io.decode_image(data, channels=0, expand_animations=False)[..., :3]  # an animation would abort

    def usual():
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    image = tf.cond(is_jpeg(data), lambda: tf.io.decode_jpeg(data, channels=3, dct_method=DCT), other)
    return tf.ensure_shape(image, (None, None, 3))


def resized_shape(shape: tf.Tensor, shorter_side: tf.Tensor | int) -> tf.Tensor:
    """Height and width, int32 (2,), after resizing the shorter side of `shape` to `shorter_side`; halves to even."""
    shape = tf.cast(shape, "float32")
    return tf.cast(tf.round(shape * tf.cast(shorter_side, "float32") / tf.reduce_min(shape)), "int32")


def _resize(image, shape, corner, crop):
    """Resizes `image` to `shape` and crops size `crop` at `corner`; only the crop is computed."""
    scale = tf.cast(shape, "float32") / tf.cast(tf.shape(image)[:2], "float32")
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None], size=crop, scale=scale, translation=-tf.cast(corner, "float32"),
        kernel_type="triangle", antialias=True,
    )[0]  # fmt: skip


def resize_shorter_side(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes as Pillow's BILINEAR, bilinear with antialiasing, but does not round to integers.

    Args:
        image: (height, width, 3), any numeric dtype.
        size: the new shorter side in pixels.

    Returns:
        float32 (new height, new width, 3), with the same aspect ratio to the nearest pixel.
    """
    shape = resized_shape(tf.shape(image)[:2], size)
    return _resize(image, shape, (0, 0), shape)


def center_crop(image: tf.Tensor, size: int, shorter_side: int | None = None) -> tf.Tensor:
    """Resizes the shorter side to `shorter_side` (default 256/224 of `size`) and crops the `size` x `size` center.

    Returns float32 (size, size, 3).
    """
    shape = resized_shape(tf.shape(image)[:2], shorter_side or shorter_sides(size)[0])
    return _resize(image, shape, (shape - size) // 2, (size, size))


def shorter_sides(size: int) -> tuple[int, int]:
    """The smallest and the largest shorter side, in pixels, for crops of `size`."""
    least, greatest = (round(side * size / IMAGE_SIZE) for side in SHORTER_SIDES)
    return least, greatest


def crop_window(shape: tf.Tensor, size: int, shorter_side: tf.Tensor | int, position: tf.Tensor) -> tf.Tensor:
    """The window of the original, in whole pixels, that becomes a crop of the resized image.

    Args:
        shape: int32 (2,), height and width of the original.
        size: height and width of the crop.
        shorter_side: of the resized image, in pixels.
        position: float32 (2,) in [0, 1), the vertical and horizontal position in the resized image.

    Returns:
        int32 (4,), top, left, height and width, each edge rounded to the nearest pixel of the original.
    """
    resized = resized_shape(shape, shorter_side)
    corner = tf.floor(position * tf.cast(resized - size + 1, "float32"))
    edges = tf.stack([corner, corner + size]) * tf.cast(shape, "float32") / tf.cast(resized, "float32")
    begin, end = tf.unstack(tf.cast(tf.round(edges), "int32"))
    begin = tf.minimum(begin, shape - 1)  # even in an image of a few pixels, the window has at least one
    return tf.concat([begin, tf.maximum(end - begin, 1)], 0)


def cut(data: tf.Tensor, size: int, shorter_side: tf.Tensor | int, position: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """One random crop: decodes the window, flips and resizes it. Little else of a JPEG file is decoded.

    Args:
        data: a string, the content of an image file.
        size, shorter_side, position: as in `crop_window`.
        flip: bool, whether to flip horizontally.

    Returns:
        float32 (size, size, 3), RGB in [0, 255], bilinear. An original at least twice as large as the resized image is
        filtered against aliasing: the JPEG decoder shrinks it by 2, 4 or 8, and the windows of other files are resized
        with antialiasing.
    """

    def window(shape):
        return crop_window(shape, size, shorter_side, position)

    def shrinking(shape):
        return tf.cast(tf.reduce_min(shape), "float32") / shorter_side

    def resize(pixels, antialias=False):
        pixels = tf.raw_ops.Reverse(tensor=pixels, dims=tf.stack([False, flip, False]))
        return tf.image.resize(pixels, (size, size), antialias=antialias)

    def jpeg():
        shape = tf.io.extract_jpeg_shape(data)[:2]
        factor = shrinking(shape)

        def part(where, ratio):
            return tf.io.decode_and_crop_jpeg(data, where, channels=3, ratio=ratio, dct_method=DCT)

        def large():
            number = tf.reduce_sum(tf.cast(factor >= np.array(RATIOS[1:], "float32"), "int32"))
            where = window(-(-shape // tf.gather(RATIOS, number)))
            return resize(tf.switch_case(number, [functools.partial(part, where, ratio) for ratio in RATIOS]))

        return tf.cond(factor >= RATIOS[1], large, lambda: resize(part(window(shape), 1)))

    def other():
        image = decode(data)
        shape = tf.shape(image)[:2]
        top, left, height, width = tf.unstack(window(shape))
        pixels = image[top : top + height, left : left + width]
        return tf.cond(shrinking(shape) >= RATIOS[1], lambda: resize(pixels, antialias=True), lambda: resize(pixels))

    return tf.cond(is_jpeg(data), jpeg, other)
