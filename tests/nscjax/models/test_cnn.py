import pytest

from tests.nscjax.models.networks import count_parameters, cut_shapes


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 13, 2)])
def test_later_convolutions_halve_the_image_and_double_the_channels(image_shape):
    height, width, _ = image_shape
    half, quarter = ((height + 1) // 2, (width + 1) // 2), ((height + 3) // 4, (width + 3) // 4)
    expected = {"conv1": (height, width, 16), "conv2": (*half, 32), "conv3": (*quarter, 64)}
    assert cut_shapes("cnn", image_shape, width=16) == expected


def test_number_of_parameters():
    kernels = 9 * (16 + 16 * 32 + 32 * 64) + 7 * 7 * 64 * 10
    assert count_parameters("cnn", (28, 28, 1), width=16) == kernels + 2 * (16 + 32 + 64) + 10
