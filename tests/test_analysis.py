import pytest

import keras_resnet
from keras_resnet.analysis import count_macs

IMAGE = (224, 224, 3)


@pytest.mark.parametrize(
    "name, options, macs",
    [
        ("ResNet18", {}, "1.814e+09"),
        ("ResNet18", {"shortcut": "A"}, "1.795e+09"),
        ("PlainNet18", {}, "1.795e+09"),
        ("ResNet34", {}, "3.664e+09"),
        ("ResNet34", {"shortcut": "A"}, "3.644e+09"),
        ("ResNet50", {}, "3.858e+09"),
        ("ResNet50", {"stride_in": "3x3"}, "4.089e+09"),
        ("ResNet101", {}, "7.570e+09"),
        ("ResNet101", {"stride_in": "3x3"}, "7.801e+09"),
        ("ResNet152", {}, "1.1282e+10"),
        ("ResNet152", {"stride_in": "3x3"}, "1.1514e+10"),
    ],
)
def test_imagenet_multiply_adds(name, options, macs):
    digits = len(macs.split("e")[0]) - 2
    for shape in (IMAGE, (None, None, 3)):
        model = getattr(keras_resnet, name)(input_shape=shape, **options)
        assert f"{count_macs(model, IMAGE):.{digits}e}" == macs


@pytest.mark.parametrize("depth, millions", [(20, "40.6"), (32, "68.9"), (44, "97.2"), (56, "125.5"), (110, "252.9")])
def test_cifar_multiply_adds(depth, millions):
    assert f"{count_macs(keras_resnet.CifarResNet(depth)) / 1e6:.1f}" == millions


def test_any_size_needs_a_size():
    with pytest.raises(ValueError, match="input_shape="):
        count_macs(keras_resnet.ResNet18())
