import pytest

from tests.nscjax.models.shapes import count_parameters, cut_shapes


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
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_number_of_parameters(name, width, expected, norm):
    assert count_parameters(name, (32, 32, 3), width=width, norm=norm) == expected


@pytest.mark.parametrize(("side", "halves"), [(32, (32, 16, 8, 4)), (28, (28, 14, 7, 4)), (9, (9, 5, 3, 2))])
def test_cut_shapes(side, halves):
    full, half, quarter, eighth = ((side, side) for side in halves)
    expected = {
        "stem": (*full, 16),
        "stage1": (*full, 16),
        "stage2": (*half, 32),
        "stage3": (*quarter, 64),
        "pool": (64,),
    }
    assert cut_shapes("resnet8", (side, side, 3), width=16) == expected
    four_stages = expected | {"stage4": (*eighth, 128), "pool": (128,)}
    assert cut_shapes("resnet18", (side, side, 3), width=16) == four_stages
    assert cut_shapes("resnet34", (side, side, 3), width=16) == four_stages


def test_any_width_and_number_of_channels():
    assert cut_shapes("resnet8", (8, 8, 2), width=7, norm="group")["stage3"] == (2, 2, 28)
