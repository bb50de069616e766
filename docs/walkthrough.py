# %% [markdown]
# # A walk through the paper
#
# **Date:** 2026-11-26
#
# **Description:** Plain and residual networks of growing depth on drawn shapes: where plain networks fail, what a
# shortcut changes, what a network looks at, and how it is served.
#
# **You need:** two CPU cores, a few minutes, no data.
#
# P1 is [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), P2 its successor
# [Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027). This file is both page and
# notebook: `make walkthrough` writes `docs/walkthrough.ipynb` and `docs/walkthrough.html`;
# `python docs/walkthrough.py` runs it as a script. Cells print or assert all results that the text states.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs only fatal errors

import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_resnet
from keras_resnet import analysis, blocks
from keras_resnet.architecture import ORDERS, cifar
from keras_resnet.data import shapes
from keras_resnet.serving import export

plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 100}

# %% [markdown]
# ## The question
#
# Is learning better networks as easy as stacking more layers? (P1, section 1.) A deeper network should not be worse on
# its own training images: it could copy the shallower one, with the identity as added layers. The paper shows that
# plain networks do get worse, and calls this degradation. We repeat the experiment on a small scale.
#
# The data are generated: ten shapes of random position, size, angle and colour, with noise and clutter
# (`keras_resnet/data/shapes.py`).

# %%
SIZE = 16  # pixels; the paper's CIFAR-10 has 32
IMAGES = 3840

images, labels = shapes.draw(IMAGES, seed=0, size=SIZE)
examples = [images[labels == label][0] for label in range(len(shapes.CLASSES))]

figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
for axis, example, name in zip(axes.flat, examples, shapes.CLASSES, strict=True):
    axis.imshow(example)
    axis.set_title(name, fontsize=10)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Counterparts
#
# The networks are those of P1 4.2: a 3x3 convolution, three stages of 16, 32 and 64 filters, global average pooling,
# one fully connected layer, 6n+2 layers in all. `CifarPlainNet` is `CifarResNet` without shortcuts. The shortcuts
# have no parameters (option A), so counterparts have the same number of parameters and multiply-adds.

# %%
DEPTHS = (8, 20, 32)
NETWORKS = {"plain": keras_resnet.CifarPlainNet, "residual": keras_resnet.CifarResNet}


def build(kind, depth):
    """A network that takes pixels in [0, 255]: a preprocessing layer normalises them."""
    keras.utils.set_random_seed(0)
    return NETWORKS[kind](depth, input_shape=(SIZE, SIZE, 3), normalization=(127.5, 64))


def parameters(model):
    """The number of trained parameters; `count_params` also counts the moving averages of batch normalisation."""
    return sum(np.prod(variable.shape) for variable in model.trainable_variables)


for depth in DEPTHS:
    plain, residual = build("plain", depth), build("residual", depth)
    print(f"{depth} layers: {parameters(plain):,} parameters, {analysis.count_macs(plain) / 1e6:.1f}e6 multiply-adds")
    assert parameters(plain) == parameters(residual)
    assert analysis.count_macs(plain) == analysis.count_macs(residual)

# %% [markdown]
# ## Their training errors
#
# The recipe is the paper's on a short schedule: its SGD, with weight decay inside the gradient (Keras' own decay is ten
# times weaker, see `keras_resnet/optimizers.py`), and a learning rate that is divided by 10 after half and after
# three quarters of the steps. The batch size is 64, and the learning rate starts at .05. There is no augmentation,
# because the question is about the training images themselves.

# %%
EPOCHS, BATCH, RATE = 8, 64, 0.05


def train(model):
    """The training error of each epoch, in %."""
    steps = EPOCHS * (IMAGES // BATCH)
    schedule = keras_resnet.StepSchedule(RATE, boundaries=(steps // 2, steps * 3 // 4))
    model.compile(
        keras_resnet.SGD(RATE, momentum=0.9, weight_decay=1e-4),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # on CPUs XLA trains these networks more slowly
    )
    history = model.fit(images, labels, BATCH, EPOCHS, verbose=0, callbacks=[schedule]).history
    return 100 * (1 - np.array(history["accuracy"]))


models, errors = {}, {}
for kind in NETWORKS:
    for depth in DEPTHS:
        models[kind, depth] = build(kind, depth)
        errors[kind, depth] = train(models[kind, depth])
        print(f"{kind}-{depth}: training error {errors[kind, depth][-1]:.1f} %")

# %%
COLORS = dict(zip(DEPTHS, ("#0072B2", "#009E73", "#D55E00"), strict=False))

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for axis, kind in zip(axes, NETWORKS, strict=True):
    for depth in DEPTHS:
        axis.plot(
            range(1, EPOCHS + 1), errors[kind, depth], "o-", color=COLORS[depth], label=f"{depth} layers", clip_on=False
        )
    axis.set(title=f"{kind} networks", xlabel="epoch", ylim=(0, 100), xticks=range(1, EPOCHS + 1))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("training error in %")
axes[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# This is a small version of P1 Fig. 6. Left, the deepest network ends with the largest error: degradation. This is not
# overfitting, because these are errors on the training images. Right, the deepest network is better than the
# shallowest, and far better than its plain counterpart. The next cell asserts it.

# %%
final = {network: error[-1] for network, error in errors.items()}
shallow, deep = DEPTHS[0], DEPTHS[-1]

assert final["plain", deep] == max(final.values()) > final["plain", shallow] + 10
assert final["residual", deep] < final["residual", shallow]
assert final["residual", deep] < final["plain", deep] - 20

print(
    f"from {shallow} to {deep} layers: plain {final['plain', shallow]:.1f} -> {final['plain', deep]:.1f} %, "
    f"residual {final['residual', shallow]:.1f} -> {final['residual', deep]:.1f} %"
)

# %% [markdown]
# On CIFAR-10, with the whole recipe, `python train/reproduce.py fig6` draws this figure; `docs/results.md` has our
# results.
#
# ## Gradients and responses
#
# Do the gradients of plain networks vanish on their way to the first layers? The authors thought not: batch
# normalisation keeps them healthy (P1 4.1). `analysis.gradient_norms` measures them, here in the deepest counterparts
# before training.
#
# `analysis.response_std` is P1 Fig. 7: the standard deviation of the output of each 3x3 convolution after batch
# normalisation, here in the trained networks.

# %%
gradients = {kind: analysis.gradient_norms(build(kind, deep), images[:128], labels[:128]) for kind in NETWORKS}
responses = {kind: analysis.response_std(models[kind, deep], images[:1024]) for kind in NETWORKS}

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for kind, color in zip(NETWORKS, ("#D55E00", "#0072B2"), strict=True):
    for axis, values in zip(axes, (gradients[kind], responses[kind]), strict=True):
        axis.plot(range(1, len(values) + 1), values.values(), ".-", color=color, label=f"{kind}-{deep}")
axes[0].set(title="before training", ylabel="norm of the gradient", yscale="log", ylim=(1e-2, 5))
axes[1].set(title="after training", ylabel="standard deviation of the response", ylim=(0, 1.5))
for axis in axes:
    axis.set(xlabel="layer, from the image to the classes", xticks=(1, *range(4, deep + 1, 4)))
    axis.grid(alpha=0.3)
axes[0].legend()
plt.show()

# %% [markdown]
# Left: no gradient vanishes. In the plain network the gradients even grow towards the image; in the residual network
# they vary less. So the deep plain network does not learn badly because of vanishing gradients, and the authors
# conjectured exponentially low convergence rates (P1 4.1).
#
# Right: with batch normalisation every response starts at about 1, and this short training has not changed its scales
# much. After a long training the responses of residual networks are smaller than those of plain networks (P1 Fig. 7).
# `python train/reproduce.py fig7` repeats the measurement on CIFAR-10; `docs/results.md` shows the effect after
# different numbers of steps.

# %%
spread = {}
for kind in NETWORKS:
    convolutions = [norm for name, norm in gradients[kind].items() if name != "fc"]
    spread[kind] = max(convolutions) / min(convolutions)
    assert convolutions[0] > convolutions[-1]
    assert all(0.5 < response < 1.5 for response in responses[kind].values())
    print(
        f"{kind}-{deep}: gradients of convolutions from {min(convolutions):.3f} to {max(convolutions):.3f}, responses "
        f"from {min(responses[kind].values()):.2f} to {max(responses[kind].values()):.2f}"
    )
assert spread["residual"] < spread["plain"]

# %% [markdown]
# ## Shortcuts A, B and C
#
# Where a stage begins, the shape changes: half the size, twice the channels. The paper has three shortcuts for this
# (P1 3.3 and 4.1): **A** takes every second pixel and adds channels of zeros; **B** is a 1x1 convolution, a projection,
# where the shape changes; **C** is a projection everywhere. `blocks.shortcut` builds all three. Each multiplies the
# channels of a pixel by a matrix, which we determine by setting one input channel at a time to 1.


# %%
def matrix(option, strides, channels, filters):
    """The matrix that a new shortcut applies to the channels: (filters, channels)."""
    x = keras.Input((2, 2, channels))
    model = keras.Model(x, blocks.shortcut(x, x, "shortcut", filters, strides, network=cifar(20, shortcut=option)))
    one_channel_each = np.tile(np.eye(channels)[:, None, None], (1, 2, 2, 1))
    return keras.ops.convert_to_numpy(model(one_channel_each))[:, 0, 0].T


keras.utils.set_random_seed(0)
CASES = {"shape stays": (1, 16, 16), "shape changes": (2, 16, 32)}
matrices = {(case, option): matrix(option, *sizes) for case, sizes in CASES.items() for option in "ABC"}

figure, axes = plt.subplots(2, 3, figsize=(7, 6.2), height_ratios=(1, 2), layout="constrained")
for axis, ((case, option), values) in zip(axes.flat, matrices.items(), strict=True):
    picture = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    axis.set(title=f"{option}: {case}", xticks=(0, 15), yticks=(0, len(values) - 1), xlabel="channel in")
for axis in axes[:, 0]:
    axis.set_ylabel("channel out")
figure.colorbar(picture, ax=axes, label="weight", shrink=0.6, ticks=(-1, 0, 1))
plt.show()

assert np.array_equal(matrices["shape stays", "A"], np.eye(16))
assert np.array_equal(matrices["shape stays", "B"], np.eye(16))
assert np.array_equal(matrices["shape changes", "A"], np.eye(32, 16))  # zeros below

# %%
for option in "ABC":
    network = keras_resnet.CifarResNet(20, shortcut=option)
    print(f"ResNet-20 with option {option}: {parameters(network):,} parameters")

# %% [markdown]
# Projections cost parameters, and the paper found their gain small (P1 Table 3): they are not essential against
# degradation. Its CIFAR networks have option A, its ImageNet networks B.
#
# ## A block in code
#
# A block is a function from a tensor to a tensor (`keras_resnet/blocks.py`), and a row of a table gives the positions
# of its batch normalisations and nonlinearities. `W` is a convolution, `+` the addition of the shortcut. The first
# line is P1's block, the last one P2's, in which no layer is on the shortcut path from block to block.

# %%
drawings = {
    name: [*order.before, "W", *order.behind, *order.before, "W", *order.last, "+", *order.added]
    for name, order in ORDERS.items()
}
for name, steps in drawings.items():
    print(f"{name:24}{' '.join(steps)}")

FILLS = {"W": "#cfe2f3", "BN": "#fff2cc", "ReLU": "#d9ead3", "+": "white"}
figure, axes = plt.subplots(1, 5, figsize=(9, 5), layout="constrained")
for axis, (name, steps) in zip(axes, drawings.items(), strict=True):
    axis.plot((0, 0), (0.5, -len(steps) - 0.8), color="black", lw=1, zorder=0)
    added = -steps.index("+") - 1
    axis.plot((0, -1.2, -1.2, -0.3), (0, 0, added, added), color="black", lw=1, zorder=0)  # the shortcut
    axis.plot(-0.3, added, ">", color="black", ms=5)
    for y, step in enumerate(steps, 1):
        box = {"boxstyle": "circle" if step == "+" else "round", "fc": FILLS[step], "ec": "black"}
        axis.text(0, -y, {"W": "3x3 conv"}.get(step, step), ha="center", va="center", fontsize=9, bbox=box)
    axis.set(xlim=(-1.4, 1), ylim=(-8.2, 0.6))
    axis.set_title(name.replace("_", " ").replace("bn", "BN").replace("relu", "ReLU"), fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# We build the first one and list its layers. They are in the table's order.

# %%
x = keras.Input((SIZE, SIZE, 16), name="x")
block = keras.Model(x, blocks.basic(x, "conv2_2", filters=16, network=cifar(20)))

for layer in block.layers[1:]:
    print(f"{layer.name:16}{type(layer).__name__}")

letters = {"Conv2D": "W", "BatchNormalization": "BN", "ReLU": "ReLU", "Add": "+"}
assert [letters[type(layer).__name__] for layer in block.layers[1:]] == drawings["original"]

# %% [markdown]
# Why is this block easier to train? To compute the identity, a plain block has to learn it, while a residual block only
# has to learn zero (P1 3.1). We set the last scale to zero, and the block returns its input exactly. Its inputs are
# never negative, because each block ends with a ReLU.

# %%
block.get_layer("conv2_2_2_bn").gamma.assign(np.zeros(16))
values = np.random.default_rng(0).uniform(size=(4, SIZE, SIZE, 16)).astype("float32")
assert np.array_equal(block.predict(values, verbose=0), values)

# %% [markdown]
# ## What a trained network looks at
#
# The deepest residual network has learned to classify: this is its error on new images.

# %%
best = models["residual", deep]
new_images, new_labels = shapes.draw(1000, seed=1, size=SIZE)
test_error = 1 - best.evaluate(new_images, new_labels, verbose=0)[1]
print(f"residual-{deep}: test error {test_error:.1%}; guessing gives 90 %")
assert test_error < 0.5

# %% [markdown]
# Where did it look? The last feature map is averaged over all positions, and one fully connected layer follows. So the
# logit of a class is the mean of the evidence for this class over all positions, plus a bias. The evidence at each
# position is the class activation map ([Zhou et al. 2016](https://arxiv.org/abs/1512.04150), section 2).
# `analysis.class_activation_map` computes it exactly, without gradients.
#
# The network is fully convolutional up to the average, so it also takes other sizes. We put ten new images, one of each
# class, side by side in one image, and look where each class is. The network was never trained to find this.

# %%
ROWS, COLUMNS = 2, 5
tiles = np.stack([new_images[new_labels == label][0] for label in range(10)])
mosaic = tiles.reshape(ROWS, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(1, ROWS * SIZE, COLUMNS * SIZE, 3)

any_size = keras_resnet.CifarResNet(deep, input_shape=(None, None, 3), weights=best)
maps = np.concatenate([analysis.class_activation_map(any_size, mosaic, label) for label in range(10)])

logits = keras.Model(any_size.input, any_size.get_layer("fc").output).predict(mosaic, verbose=0)[0]
bias = any_size.get_layer("fc").get_weights()[1]
assert np.allclose(maps.mean(axis=(1, 2)) + bias, logits, rtol=1e-3, atol=1e-3)

# %%
STRIDE = mosaic.shape[1] // maps.shape[1]  # between the map's positions, in pixels
cells = SIZE // STRIDE
tile_means = maps.reshape(10, ROWS, cells, COLUMNS, cells).mean(axis=(2, 4)).reshape(10, 10)
found = tile_means.argmax(axis=1)


def draw_map(axis, evidence, stride):
    """Draws a map over an image: position i corresponds to an area around pixel stride * i."""
    continued = np.pad(evidence, (0, 1), "edge")  # the last position is half a stride short of the edge
    rows, columns = continued.shape
    extent = (-stride / 2, (columns - 0.5) * stride, (rows - 0.5) * stride, -stride / 2)
    axis.imshow(continued, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear")


figure, axes = plt.subplots(5, 2, figsize=(8, 8), layout="constrained")
for label, axis in enumerate(axes.flat):
    axis.imshow(mosaic[0].mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    draw_map(axis, np.maximum(maps[label], 0), STRIDE)
    row, column = divmod(label, COLUMNS)
    corner = (column * SIZE - 0.5, row * SIZE - 0.5)
    axis.add_patch(plt.Rectangle(corner, SIZE, SIZE, fill=False, ec="#39d353", lw=2))
    axis.set(xlim=(-0.5, mosaic.shape[2] - 0.5), ylim=(mosaic.shape[1] - 0.5, -0.5))
    axis.set_title(f"where is the {shapes.CLASSES[label]}?", fontsize=10)
    axis.axis("off")
plt.show()

print(f"{sum(found == np.arange(10))} of 10 classes have most evidence in their own image (green)")
assert sum(found == np.arange(10)) >= 5

# %% [markdown]
# The same for a network trained on photographs: `weights="cifar10"` is ResNet-20 as this project trained it on
# CIFAR-10, with the paper's whole recipe (`docs/results.md`). It has never seen a drawing.

# %%
path = next(path for path in ("docs/ship.png", "ship.png") if os.path.exists(path))
ship = np.array([keras.utils.load_img(path, target_size=(32, 32))])
photographs = keras_resnet.CifarResNet(20, weights="cifar10")
(((_, name, score), *_),) = keras_resnet.decode_predictions(photographs.predict(ship, verbose=0), classes="cifar10")
(seen,) = analysis.class_activation_map(photographs, ship)

figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
for axis in axes:
    axis.imshow(ship[0])
    axis.axis("off")
draw_map(axes[1], seen, 4)
axes[1].set(xlim=(-0.5, 31.5), ylim=(31.5, -0.5), title=f"{name}, {score:.0%}")
plt.show()

row, column = np.unravel_index(seen.argmax(), seen.shape)
print(f"the evidence for {name} is largest around pixel ({4 * row}, {4 * column})")
assert name == "ship"
assert 6 <= 4 * row <= 23 and 4 <= 4 * column <= 30  # from the funnel to the keel

# %% [markdown]
# ## Served
#
# Trained networks are exported as SavedModels for TF Serving. `serving.export` folds batch normalisation into the
# convolutions, which changes the outputs only by rounding, and writes the next version to a folder, whole or not at
# all. We load it and compare.

# %%
folder = os.path.join(tempfile.mkdtemp(), "shapes")
path = export(best, folder, classes=shapes.CLASSES)
served = tf.saved_model.load(path)

answer = served.signatures["serving_default"](images=tf.constant(tiles, "float32"))
assert np.allclose(answer["probabilities"], best.predict(tiles, verbose=0), atol=1e-4)

for name, names, scores in zip(shapes.CLASSES, answer["labels"].numpy(), answer["scores"].numpy(), strict=True):
    print(f"{name:10} -> {names[0].decode():10} {scores[0]:.0%}, then {names[1].decode()} {scores[1]:.0%}")

# %% [markdown]
# The same SavedModel takes image files, too.

# %%
png = tf.io.encode_png(tiles[0]).numpy()
answer = served.signatures["predict_bytes"](image_bytes=tf.constant([png]))
print(f"a PNG of {len(png)} bytes: {answer['labels'][0, 0].numpy().decode()}, {answer['scores'][0, 0].numpy():.0%}")

# %% [markdown]
# ## Where to go from here
#
# - `docs/results.md`: CIFAR-10 with the paper's recipe, and the results.
# - `python train/fit.py --dataset shapes --depth 20` trains, logs, checkpoints and tests, as a program.
# - `python train/reproduce.py` runs the tables and figures of both papers.
# - `docs/serving.md`: TF Serving, OpenVINO, ONNX and LiteRT.
# - `docs/deviations.md`: everything that differs from the paper.
