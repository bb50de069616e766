"""The figures and printed lines of a run."""

import pytest

from keras_resnet.training import history


def test_curves_of_one_and_many_epochs(tmp_path):
    row = {"step": 100, "error": 0.5, "val_error": 0.6}
    history.draw([row], "one", tmp_path / "one.png", test_error=0.7)
    history.draw([{**row, "step": 100 * i} for i in range(1, 40)], "many", tmp_path / "many.png")
    history.draw([{"step": 1, "error": 0.5}], "no validation", tmp_path / "none.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize("last, drawn, label", [(50, 50, "iterations"), (4000, 4, "iterations (thousands)")])
def test_the_axis_of_a_short_run_counts_single_steps(last, drawn, label):
    row = {"step": last // 2, "error": 0.5}
    (axes,) = history._draw_curves([row, {**row, "step": last}], "title", None).axes
    assert axes.get_xlabel() == label and axes.lines[0].get_xdata().tolist() == [drawn / 2, drawn]


def test_durations():
    assert [history.clock(seconds) for seconds in (56.4, 3599.7, 36000)] == ["0:00:56", "1:00:00", "10:00:00"]
