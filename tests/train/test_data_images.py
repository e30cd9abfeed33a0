import sys

import numpy as np
import pytest

from nscjax.check import InputError
from tests.train.data_files import Settings, made_images, write_images
from train.data import load
from train.data.images import image_folder

Image = pytest.importorskip("PIL.Image", reason="pillow (the extra `images`) is not installed")


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_folder_is_read_in_the_order_of_its_names(tmp_path, shape):
    x_train = write_images(tmp_path / "train", {"cat": 3, "dog": 4}, shape)
    x_test = write_images(tmp_path / "test", {"dog": 2}, shape, seed=1)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("left out")
    (tmp_path / "train" / ".hidden").mkdir()
    dataset = load(Settings("image_folder", str(tmp_path)))
    np.testing.assert_array_equal(dataset.x_train, x_train)
    np.testing.assert_array_equal(dataset.x_test, x_test)
    np.testing.assert_array_equal(dataset.y_train, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(dataset.y_test, [1, 1])
    assert dataset.class_names == ("cat", "dog")
    assert dataset.num_classes == 2


def test_only_wanted_images_are_decoded(tmp_path):
    write_images(tmp_path / "train", {"cat": 5, "dog": 5}, (4, 4))
    write_images(tmp_path / "test", {"cat": 1}, (4, 4))
    dataset = load(Settings("image_folder", str(tmp_path), num_train=4))
    unused = set(range(10)) - set(np.random.RandomState(0).permutation(10)[:4])
    paths = image_folder(tmp_path / "train").paths
    for index in unused - {0}:  # the first decides about the size
        paths[index].write_bytes(b"broken")
    np.testing.assert_array_equal(load(Settings("image_folder", str(tmp_path), num_train=4)).x_train, dataset.x_train)


def test_jpeg_palette_and_gray_images_become_colour(tmp_path):
    write_images(tmp_path / "a", {"x": 1}, (8, 8, 3))
    colour, gray = made_images(1, 8, 8, 3)[0], made_images(1, 8, 8)[0]
    Image.fromarray(colour).save(tmp_path / "a" / "x" / "1.JPG", format="JPEG")
    Image.fromarray(gray).save(tmp_path / "a" / "x" / "2.png")
    Image.fromarray(colour).convert("P").save(tmp_path / "a" / "x" / "3.png")
    Image.fromarray(np.dstack([colour, gray])).save(tmp_path / "a" / "x" / "4.png")
    images = np.asarray(image_folder(tmp_path / "a"))
    assert images.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(images[2], np.repeat(gray[..., None], 3, axis=2))
    np.testing.assert_array_equal(images[4], colour)


def test_image_of_another_size_is_named_with_both_sizes(tmp_path):
    write_images(tmp_path / "train", {"cat": 2, "dog": 2}, (4, 6))
    write_images(tmp_path / "test", {"cat": 1}, (4, 5))
    other = tmp_path / "test" / "cat" / "000.png"
    with pytest.raises(InputError) as raised:
        load(Settings("image_folder", str(tmp_path)))
    first = tmp_path / "train" / "cat" / "000.png"
    assert str(raised.value) == f"the size of {other} is '5 x 4'; allowed: 6 x 4, as {first} has."


def test_colour_image_among_gray_ones_is_named(tmp_path):
    write_images(tmp_path / "train", {"cat": 2}, (4, 4))
    Image.fromarray(made_images(1, 4, 4, 3)[0]).save(tmp_path / "train" / "cat" / "001.png")
    with pytest.raises(InputError, match=r"the channels of .*001.png is 'colour'; allowed: gray, as in .*000.png"):
        np.asarray(image_folder(tmp_path / "train"))


def test_16_bit_image_is_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 1}, (4, 4))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "train" / "cat" / "000.png")
    with pytest.raises(InputError, match="its mode I;16 is not gray or colour with 8 bits a channel"):
        image_folder(tmp_path / "train")


def test_broken_image_is_named(tmp_path):
    write_images(tmp_path / "train", {"cat": 2}, (32, 32))
    path = tmp_path / "train" / "cat" / "001.png"
    for content in (b"not an image", path.read_bytes()[:200], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"001.png cannot be read .* allowed: a PNG or JPEG image, whole"):
            np.asarray(image_folder(tmp_path / "train"))


def test_missing_folders_and_classes_are_named(tmp_path):
    with pytest.raises(InputError, match=r"data.dir is .*; allowed: a folder that holds train/CLASS/\*.png or \*.jpg"):
        load(Settings("image_folder", str(tmp_path / "absent")))
    write_images(tmp_path / "train", {"cat": 1, "dog": 1}, (4, 4))
    with pytest.raises(InputError, match=r"a folder that holds test/CLASS/\*.png"):
        load(Settings("image_folder", str(tmp_path)))
    write_images(tmp_path / "test", {"cow": 1}, (4, 4))
    with pytest.raises(InputError, match=r"a class in .*test is 'cow'; allowed: those of training: cat, dog"):
        load(Settings("image_folder", str(tmp_path)))
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(InputError, match=r"the number of images in .*empty is 0; allowed: at least 1"):
        load(Settings("image_folder", str(tmp_path)))


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    write_images(tmp_path / "train", {"cat": 1}, (4, 4))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pillow is not installed; .*pip install -e '\.\[images\]'"):
        image_folder(tmp_path / "train")
