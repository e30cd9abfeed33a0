from tests.nscjax.models.networks import count_parameters, cut_shapes


def test_three_hidden_layers_whatever_the_shape_of_the_input():
    expected = {"hidden1": (32,), "hidden2": (32,), "hidden3": (32,)}
    assert cut_shapes("mlp", (8, 8, 1), width=32) == expected
    assert cut_shapes("mlp", (5, 7, 3), width=32) == expected
    assert cut_shapes("mlp", (64,), width=32) == expected


def test_number_of_parameters():
    # Weights, then scale and shift of three normalisations, then the biases of the head.
    assert count_parameters("mlp", (8, 8, 1), width=32) == 64 * 32 + 2 * 32 * 32 + 32 * 10 + 3 * 2 * 32 + 10
