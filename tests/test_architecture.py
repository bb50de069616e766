import dataclasses
import itertools

import keras
import pytest

import keras_resnet
from keras_resnet.architecture import IMAGENET, ORDERS, OTHER_ORDERS, VARIANTS, Architecture, cifar, imagenet
from keras_resnet.weights import readers

ALL_ORDERS = ORDERS | OTHER_ORDERS


def drawing(order, convolutions=2):
    """P2 Fig. 4 in letters: W is a convolution, + the addition."""
    between = [*order.behind, *order.before]
    inner = " ".join(["W", *between] * (convolutions - 1) + ["W"])
    return " ".join([*order.before, inner, *order.last, "+", *order.added])


@pytest.mark.parametrize(
    "order, expected",
    [
        ("original", "W BN ReLU W BN + ReLU"),
        ("bn_after_addition", "W BN ReLU W + BN ReLU"),
        ("relu_before_addition", "W BN ReLU W BN ReLU +"),
        ("relu_only_preactivation", "ReLU W BN ReLU W BN +"),
        ("full_preactivation", "BN ReLU W BN ReLU W +"),
    ],
)
def test_orders_are_those_of_the_figure(order, expected):
    assert drawing(ORDERS[order]) == expected


def test_rows_are_the_papers():
    assert {depth: imagenet(depth).depth for depth in IMAGENET} == {depth: depth for depth in IMAGENET}
    assert cifar(1202).repetitions == (200, 200, 200) and cifar(164, "bottleneck").repetitions == (18, 18, 18)
    assert [cifar(depth).name for depth in (20, 1202)] == ["cifar_resnet20", "cifar_resnet1202"]
    assert imagenet(34, shortcut=None).name == "plainnet34"
    assert imagenet(50, activation_order="full_preactivation").name == "resnet50v2"


@pytest.mark.parametrize("output_stride", [None, 8, 16])
def test_the_strides_of_the_blocks(output_stride):
    """P1 Table 1: conv3_1, conv4_1 and conv5_1; dilation doubles where a stride is removed."""
    rows = {block.name: block for block in imagenet(18, output_stride=output_stride).blocks()}
    assert [row.filters for row in rows.values()] == [64, 64, 128, 128, 256, 256, 512, 512]
    strides = {name: row.strides for name, row in rows.items() if row.strides > 1}
    stages = {None: (3, 4, 5), 16: (3, 4), 8: (3,)}[output_stride]
    assert strides == {f"conv{stage}_1": 2 for stage in stages}
    assert rows["conv5_2"].rates == {None: (1, 1), 16: (2, 2), 8: (4, 4)}[output_stride]
    assert rows["conv5_1"].rates == {None: (1, 1), 16: (1, 2), 8: (2, 4)}[output_stride]


def test_a_value_that_cannot_change():
    assert imagenet(18) == imagenet(18) and len({imagenet(18), imagenet(18)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        imagenet(18).shortcut = "A"
    assert imagenet(18, stride_in="3x3") == imagenet(18)  # which basic blocks have there anyway
    assert imagenet(18, stem="3x3", output_stride=8) == imagenet(18, stem="3x3")
    assert Architecture("basic", [2, 2, 2, 2]) == imagenet(18)


def test_differences_are_named():
    one, other = imagenet(50, stride_in="1x1"), imagenet(101, shortcut="C", stride_in="3x3", output_stride=8)
    assert one.differences(other) == {
        "repetitions": ((3, 4, 6, 3), (3, 4, 23, 3)),
        "shortcut": ("B", "C"),
        "stride_in": ("1x1", "3x3"),
    }
    assert one.differences(imagenet(50)) == imagenet(50).differences(one) == {}
    assert not one.differences(dataclasses.replace(one, output_stride=16))
    assert cifar(20).differences(cifar(20, "bottleneck")) == {
        "block": ("basic", "bottleneck"),
        "repetitions": ((3, 3, 3), (2, 2, 2)),
    }


@pytest.mark.parametrize("convolutions", [2, 3])
def test_no_two_orders_have_the_same_layers(convolutions):
    for one, other in itertools.combinations(ALL_ORDERS.values(), 2):
        assert one.layers(convolutions) != other.layers(convolutions)


NETWORKS = [
    *(
        cifar(8 if block == "basic" else 11, block, shortcut, activation_order=order)
        for block in ("basic", "bottleneck")
        for order in ALL_ORDERS
        for shortcut in "AB"
    ),
    *(cifar(8, shortcut_variant=variant) for variant in VARIANTS),
    cifar(8, shortcut="C"),
    cifar(8, shortcut=None),
    cifar(20, "bottleneck", "C", stride_in="3x3"),
    imagenet(18, shortcut="A", stem="3x3"),
    imagenet(18, shortcut="C", output_stride=16),
    imagenet(50, stride_in="3x3", output_stride=8),
    imagenet(50, stride_in="1x1", activation_order="full_preactivation"),
    imagenet(34, shortcut=None),
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_model_says_which_network_it_is(network):
    """The builder's architecture is recovered from the layers."""
    model = keras_resnet.models.build(network, include_top=False)
    found = readers.read(model).architecture
    if network.block == "bottleneck" and network.stride_in is None:
        network = dataclasses.replace(network, stride_in="1x1")
    assert found == network
    assert model.name == network.name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": "wide"}, "block is one of 'basic', 'bottleneck'; found 'wide'"),
        ({"shortcut": "D"}, "shortcut is one of 'A', 'B', 'C', None; found 'D'"),
        ({"stem": "5x5"}, "stem is one of '7x7', '3x3'"),
        ({"stride_in": "5x5"}, "stride_in is one of None, '1x1', '3x3'"),
        ({"activation_order": "none"}, "activation_order is one of 'original'"),
        ({"activation_order": "bare_stem_preactivation", "stem": "7x7"}, 'needs stem="3x3"'),
        ({"shortcut_variant": "half"}, "shortcut_variant is one of None, 'constant_scaling'"),
        ({"shortcut": None, "shortcut_variant": "dropout"}, "a plain network has no shortcut"),
        ({"output_stride": 8}, "output_stride=8 needs a network with a larger stride; this one has 4"),
    ],
)
def test_what_is_no_network(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cifar(20), **options)


def test_depths_that_do_not_exist():
    with pytest.raises(ValueError, match="depth is one of 18, 34, 50, 101, 152, 200; found 20"):
        imagenet(20)


def test_a_network_of_ones_own_is_a_row():
    """ResNet-26 with bottlenecks, which is in neither paper."""
    row = Architecture("bottleneck", (2, 2, 2, 2), shortcut="B")
    model = keras_resnet.models.build(row, classes=10)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len([layer for layer in convolutions if "shortcut" not in layer.name]) + 1 == row.depth == 26
    assert model.name == "resnet26"
