"""The same networks in PyTorch, channels last, for comparison in training and serving."""

import torch
from torch import nn
from torch.nn import functional

CHANNELS_LAST = torch.channels_last


class Block(nn.Module):
    """A basic block, or a bottleneck with the stride in its first 1x1; option A for CIFAR, B for ImageNet."""

    def __init__(self, before, after, stride, kernels, projection):
        super().__init__()
        width = after // 4 if len(kernels) == 3 else after
        channels = [before, *[width] * (len(kernels) - 1), after]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, kernel, 1 if i else stride, kernel // 2, bias=False),
                nn.BatchNorm2d(b),
            )
            for i, (kernel, a, b) in enumerate(zip(kernels, channels, channels[1:], strict=False))
        )
        self.stride, self.zeros = stride, after - before
        self.projection = None
        if projection and (self.zeros or stride > 1):
            self.projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        *layers, last = self.layers
        y = x
        for layer in layers:
            y = functional.relu(layer(y))
        if self.projection:
            x = self.projection(x)
        elif self.zeros:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zeros))
        return functional.relu(x + last(y))


def stages(before, widths, repetitions, kernels, projection):
    found = []
    for stage, (width, count) in enumerate(zip(widths, repetitions, strict=True)):
        for i in range(count):
            found.append(Block(before, width, 2 if stage and not i else 1, kernels, projection))
            before = width
    return found


def network(depth):
    """ResNet-50 for 224x224 images, or the CIFAR network of another depth."""
    if depth == 50:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        blocks = stages(64, (256, 512, 1024, 2048), (3, 4, 6, 3), (1, 3, 1), True)
        last = nn.Linear(2048, 1000)
    else:
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        blocks = stages(16, (16, 32, 64), ((depth - 2) // 6,) * 3, (3, 3), False)
        last = nn.Linear(64, 10)
    layers = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return layers.to(memory_format=CHANNELS_LAST)


def training_step(depth, images, labels, bfloat16=False, compiled=False):
    """A function that makes one step with the paper's optimizer on one batch and returns the loss.

    Args:
        images: array (batch, height, width, 3), pixels in [0, 255]; `labels`: int64 (batch,).
        bfloat16: whether to train with autocast.
        compiled: whether with `torch.compile`.
    """
    model = network(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if compiled else model
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=CHANNELS_LAST)
    labels = torch.from_numpy(labels)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = functional.cross_entropy(forward(images - 120.0).float(), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
