"""The declaration of each setting, and its effects."""

import argparse
import dataclasses

import numpy as np
import pytest

from keras_resnet.files import RunError
from keras_resnet.training import Settings
from keras_resnet.training.command_line import add_settings
from keras_resnet.training.objective import schedule_of
from keras_resnet.training.options import command, flag, flags, options, type_of
from keras_resnet.training.settings import deciding, names

FIELDS = dataclasses.fields(Settings)
CHOICES = [(field.name, one) for field in FIELDS for one in field.metadata["option"].choices or ()]


def parse(*words):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return vars(parser.parse_args(words))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_says_what_it_is_and_has_a_flag(field):
    one = field.metadata["option"]
    assert one.help and one.group in ("network", "weights", "data", "recipe", "devices", "run")
    kind, several = type_of(field)
    assert kind in (int, float, str, bool)
    value = {int: "3", float: "0.5", str: "x"}.get(kind)
    words = [] if kind is bool else [one.choices[-1] if one.choices else value]
    found = parse(flag(field.name), *words)[field.name]
    expected = True if kind is bool else kind(words[0])
    assert found == ([expected] if several else expected)
    assert parse()[field.name] == field.default


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "cosine"}, "--schedule is one of steps, plateau; found 'cosine'"),
        ({"strategy": "mirorred"}, "--strategy is one of auto, none, mirrored, multiworker; found 'mirorred'"),
        ({"shortcut": "D"}, "--shortcut is one of A, B, C; found 'D'"),
        ({"block": "wide"}, "--block is one of basic, bottleneck; found 'wide'"),
        ({"mixed_precision": "float8"}, "--mixed-precision is one of float16, bfloat16; found 'float8'"),
        ({"activation_order": "none"}, "--activation-order is one of original, .*; found 'none'"),
        ({"without": ("noise",)}, "--without is one of scale, crop, flip, color, mean; found 'noise'"),
        ({"without": "flip"}, "--without is a list; found 'flip'"),
        ({"depth": "20"}, "--depth is of the type int; found '20'"),
        ({"depth": 20.0}, "--depth is of the type int; found 20.0"),
        ({"seed": True}, "--seed is of the type int; found True"),
        ({"lr": "0.1"}, "--lr is of the type float; found '0.1'"),
        ({"boundaries": ("3",), "steps": 9}, "--boundaries is of the type int; found '3'"),
        ({"plain": 1}, "--plain is of the type bool; found 1"),
        ({"dataset": None}, "--dataset is of the type str; found None"),
        ({"stride_in": "3x3"}, "--stride-in is for ImageNet-style images, not for cifar10"),
        ({"skip_damaged": True}, "--skip-damaged is for ImageNet-style images, not for cifar10"),
    ],
)
def test_a_wrong_value_is_refused_at_the_door(changes, message):
    with pytest.raises(RunError, match=f"^{message}$"):
        Settings(**changes)


@pytest.mark.parametrize("name", [one.name for one in FIELDS if one.type in (int, float, int | None)])
def test_every_number_has_a_range(name):
    """The range of the depth is the set of networks."""
    expected = {"depth": "is 6n.2 .*", "seed": "is 0 to 2147483647", "weight_decay": "is 0 or positive"}
    with pytest.raises(RunError, match=rf"^{flag(name)} {expected.get(name, 'is positive')}; found -1\b"):
        Settings(**{name: -1})
    if name not in expected:
        with pytest.raises(RunError, match=f"^{flag(name)} is positive; found 0"):
            Settings(**{name: 0})


def test_numbers_and_paths_of_other_types_become_those_of_json(tmp_path):
    one = {"depth": np.int64(56), "lr": np.float64(0.5), "weight_decay": 0, "output": tmp_path}
    one |= {"steps": np.int32(9), "boundaries": [np.int64(3), 6]}
    other = {"depth": 56, "lr": 0.5, "weight_decay": 0.0, "output": str(tmp_path), "steps": 9, "boundaries": (3, 6)}
    found = Settings(**one)
    assert found == Settings(**other) and found.as_json() == Settings(**other).as_json()
    assert [type(getattr(found, name)) for name in ("depth", "lr", "weight_decay", "output")] == [
        int,
        float,
        float,
        str,
    ]
    assert type(found.boundaries[0]) is int and Settings(dataset=tmp_path, depth=18).imagenet_style


@pytest.mark.parametrize("name, changes", [("train_on_all", True), ("block", "bottleneck")])
def test_what_is_for_small_images_is_not_for_photographs(tmp_path, name, changes):
    with pytest.raises(RunError, match=f"{flag(name)} is for small images, not for ImageNet-style images"):
        Settings(dataset=str(tmp_path), depth=18, **{name: changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"jit": True}, "--jit is not supported on JAX: JAX always compiles"),
        ({"sync_bn": True}, "--sync-bn is not supported on JAX: .*--bn-batch-size"),
        ({"deterministic": True}, "--deterministic is not supported on JAX: .*XLA_FLAGS"),
        ({"mixed_precision": "float16"}, "--mixed-precision float16 is not supported on JAX: .*bfloat16"),
        ({"shortcut_variant": "dropout"}, "--shortcut-variant dropout is not supported on JAX"),
    ],
)
def test_what_an_engine_cannot_do(changes, message):
    found = Settings(depth=110, **changes)
    found.check_engine("tensorflow")
    with pytest.raises(RunError, match=message):
        found.check_engine("jax")


def test_all_else_is_for_both_engines(tmp_path):
    Settings(mixed_precision="bfloat16", accumulate=2, schedule="plateau", patience=3).check_engine("jax")
    Settings(dataset=str(tmp_path), depth=18, skip_damaged=True, strategy="mirrored").check_engine("jax")


def test_what_decides_a_result():
    without = {"data_dir", "output", "name", "checkpoint_every", "strategy", "jit", "data_changed"}
    assert {name for name, one in options(Settings).items() if not one.decides} == without
    settings = Settings(depth=56, output="elsewhere", lr=0.2)
    assert settings.deciding.keys() == {field.name for field in FIELDS} - without
    assert deciding({"lr": 0.2, "output": "x", "unknown": 1}) == {"lr": 0.2}
    assert settings.changes == {"depth": 56, "lr": 0.2}


def test_a_plateau_has_enough_steps():
    """As many epochs as --patience says; the default's, or more where epochs are short."""
    options = {"dataset": "shapes", "schedule": "plateau", "batch_size": 10}
    patience = lambda examples, **more: schedule_of(Settings(**options, **more), examples).patience
    assert patience(10_000) == 5 and patience(1_000) == 5 and patience(990) == 6 and patience(25) == 250
    assert patience(25, patience=4) == 4


def test_the_groups_of_an_experiment():
    assert names("network") == (
        *("depth", "plain", "shortcut", "block", "stride_in", "activation_order", "shortcut_variant"),
    )
    assert names("weights") == ("init_from", "freeze_until")


def test_the_paper_has_an_error_for_its_own_networks_only():
    assert Settings(depth=56, steps=3).paper_error == pytest.approx(0.0697)
    for changes in ({"plain": True}, {"shortcut": "B"}, {"dataset": "cifar100"}, {"depth": 26}):
        assert Settings(**{"depth": 20, **changes}).paper_error is None


def test_settings_as_a_command():
    values = {"depth": 56, "plain": True, "warmup": False, "boundaries": [3, 6], "name": "a b"}
    words = "--depth 56 --plain --no-warmup --boundaries 3 6 --name 'a b'"
    assert flags(values) == words
    assert command(values) == command(values, "tensorflow") == f"python train/fit.py {words}"
    assert command(values, "jax") == f"KERAS_BACKEND=jax python train/fit.py {words}"
