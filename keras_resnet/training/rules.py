"""Checks that the settings of a run are consistent."""

import math
import typing

from keras_resnet.architecture import IMAGENET, cifar
from keras_resnet.files import RunError
from keras_resnet.training import recipes
from keras_resnet.training.options import flag, options

if typing.TYPE_CHECKING:
    from keras_resnet.training.settings import Settings


def check_together(settings: "Settings") -> None:
    """RunError if settings that are valid separately do not go together."""
    if settings.batch_size % settings.accumulate:
        raise RunError(
            f"--batch-size must be a multiple of --accumulate; found {settings.batch_size} and {settings.accumulate}"
        )
    _check_schedule(settings)
    if settings.sync_bn and settings.bn_batch_size != settings.batch_size:
        raise RunError(
            "--sync-bn normalises the whole batch together, on all devices; leave out --bn-batch-size "
            f"{settings.bn_batch_size}, or set it to --batch-size, {settings.batch_size}"
        )
    if settings.plain and (settings.activation_order or settings.shortcut_variant):
        raise RunError("--plain has no shortcuts, so --activation-order and --shortcut-variant of P2 do not apply")
    if settings.plain and "shortcut" in settings.changes:
        raise RunError(f"--plain has no shortcuts; found --shortcut {settings.shortcut} as well; give only one")
    if settings.freeze_until and not settings.init_from:
        raise RunError("--freeze-until keeps trained layers unchanged; it needs --init-from")
    if settings.imagenet_style:
        v2 = settings.activation_order == "full_preactivation"  # only P2 has 200 layers; plain blocks are basic
        rows = [(n, block) for n, (block, _) in IMAGENET.items() if n < 200 or v2]
        depths = [n for n, block in rows if block == "basic" or not settings.plain]
        if settings.depth not in depths:
            plain = " with --plain" * settings.plain
            hint = "; 200 layers need --activation-order full_preactivation" * (settings.depth == 200)
            raise RunError(
                f"--depth of networks for ImageNet{plain} is one of {', '.join(map(str, depths))}; found "
                f"{settings.depth}{hint}"
            )
        if settings.stride_in and IMAGENET[settings.depth][0] == "basic":
            raise RunError(f"--stride-in is for bottlenecks, from --depth 50 on; found --depth {settings.depth}")
        if settings.activation_order not in (None, "original", "full_preactivation"):
            raise RunError(
                "--activation-order of networks for ImageNet is original or full_preactivation; found "
                f"{settings.activation_order}"
            )
    for name, one in options(settings).items():
        if one.data not in (None, settings.images) and getattr(settings, name) != getattr(type(settings), name):
            found = settings.images if settings.imagenet_style else settings.dataset
            raise RunError(f"{flag(name)} is for {one.data}, not for {found}")
    if settings.imagenet_style:
        return
    try:
        cifar(settings.depth, settings.block)
    except ValueError as error:
        raise RunError(f"--{error}") from error


def _check_schedule(settings):
    length, unit = (settings.epochs, "epochs") if settings.epochs else (settings.steps, "steps")
    inside = [0, *settings.boundaries, length]
    if sorted(set(inside)) != inside:
        found = " ".join(map(str, settings.boundaries))
        raise RunError(f"--boundaries ascend and lie within --{unit} {length}; found {found}")
    if settings.schedule == "plateau" and settings.boundaries:
        raise RunError("--boundaries are for --schedule steps; found --schedule plateau, which finds them itself")
    if settings.schedule == "plateau" and settings.train_on_all and not settings.imagenet_style:
        raise RunError("--schedule plateau needs validation images, and --train-on-all leaves none")
    if settings.schedule != "plateau" and settings.patience != recipes.PATIENCE:
        raise RunError(f"--patience {settings.patience} is for --schedule plateau")
    if not settings.warmup_epochs:
        return
    if settings.warmup:
        raise RunError("--warmup and --warmup-epochs are two kinds of warm-up; give only one")
    if settings.warmup_epochs >= (settings.epochs or math.inf):
        raise RunError(f"--warmup-epochs is less than --epochs {settings.epochs}; found {settings.warmup_epochs}")
    if settings.warmup_from >= settings.lr:
        raise RunError(
            "--warmup-epochs starts from the learning rate for the paper's batch size, which must be below --lr; found "
            f"{settings.warmup_from} for --lr {settings.lr} and --batch-size {settings.batch_size}; use a larger batch"
        )
