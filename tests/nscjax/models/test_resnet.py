import pytest

from tests.nscjax.models.networks import count_parameters, cut_shapes


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        # Kernels 432 + 4608 + 14336 + 57344, scales and shifts 32 + 64 + 192 + 384, head 650.
        ("resnet8", 16, 78_042),
        # The counts of the widely used PyTorch networks for CIFAR-10 (github.com/kuangliu/pytorch-cifar).
        ("resnet18", 64, 11_173_962),
        ("resnet34", 64, 21_282_122),
    ],
)
def test_number_of_parameters(name, width, expected):
    assert count_parameters(name, (32, 32, 3), width=width) == expected


def test_both_normalisations_have_as_many_parameters():
    assert count_parameters("resnet8", (8, 8, 3), width=16, norm="group") == 78_042


@pytest.mark.parametrize(("side", "halves"), [(32, (16, 8)), (28, (14, 7)), (9, (5, 3))])
def test_cut_shapes_of_three_stages(side, halves):
    half, quarter = halves
    assert cut_shapes("resnet8", (side, side, 3), width=16) == {
        "stem": (side, side, 16),
        "stage1": (side, side, 16),
        "stage2": (half, half, 32),
        "stage3": (quarter, quarter, 64),
        "pool": (64,),
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_cut_shapes_of_four_stages(name):
    assert cut_shapes(name, (28, 28, 1), width=64) == {
        "stem": (28, 28, 64),
        "stage1": (28, 28, 64),
        "stage2": (14, 14, 128),
        "stage3": (7, 7, 256),
        "stage4": (4, 4, 512),
        "pool": (512,),
    }


def test_any_width_and_number_of_channels():
    assert cut_shapes("resnet8", (8, 8, 2), width=7, norm="group")["stage3"] == (2, 2, 28)
