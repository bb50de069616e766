import numpy as np
import pytest

from keras_resnet import normalization
from keras_resnet.normalization import for_size


@pytest.mark.parametrize("size", [(6, 6), (4, 7), (None, None)])
def test_a_mean_image_becomes_its_mean_color_for_another_size(size):
    rows = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 6, 3))  # 0 to 3 from above to below: 1.5 in the mean
    mean, std = for_size((rows + (10, 20, 30), 2.0), size)
    np.testing.assert_allclose(mean, (11.5, 21.5, 31.5))
    assert std == 2
    mean, std = for_size((7.0, 1 + rows), size)
    np.testing.assert_allclose(std, (2.5, 2.5, 2.5))
    assert mean == 7


def test_what_fits_stays_as_it_is():
    image = (np.zeros((4, 6, 3)), 1.0)
    assert for_size(image, (4, 6)) is image
    for each in (None, "caffe", normalization.UNKNOWN, (120.0, 60.0), ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))):
        assert for_size(each, (None, None)) is each
