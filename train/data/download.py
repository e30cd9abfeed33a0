"""Finding the files of a data set, and fetching missing ones from their official addresses by checksum."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pooch

from nscjax.check import InputError, error


class Source(NamedTuple):
    """Where the files of one data set are published."""

    address: str  # URL of the folder, with the closing slash
    checksums: Mapping[str, str]  # file name -> "md5:..." or "sha256:..."


_TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
_TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
_TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
_TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            _TRAIN_IMAGES: "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            _TRAIN_LABELS: "md5:d53e105ee54ea40749a09fcbcd1e9432",
            _TEST_IMAGES: "md5:9fb629c4189551a2d022fa330f9573f3",
            _TEST_LABELS: "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            _TRAIN_IMAGES: "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            _TRAIN_LABELS: "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            _TEST_IMAGES: "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            _TEST_LABELS: "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"},
    ),
}


def find(source: Source, directory: Path, choices: Sequence[str], download: bool) -> Path:
    """Returns the first of `choices` that is in `directory`; fetches one if none is and `download` is true.

    Args:
        source: where the data set is published; it has a checksum for one of `choices`.
        directory: the folder to look in, made if something is fetched.
        choices: names of files or folders that serve equally, the preferred one first.
        download: whether to fetch what is missing. What is there is never fetched again.

    Raises:
        InputError: none of `choices` is there and `download` is false, or fetching failed.
    """
    for name in choices:
        if (directory / name).exists():
            return directory / name
    published = next(name for name in choices if name in source.checksums)
    if download:
        return fetch(source, published, directory)
    raise error(
        "data.dir",
        str(directory),
        f"a folder that holds {' or '.join(choices)}",
        f"`--data.download true` fetches {published} from {source.address}{published}",
    )


def fetch(source: Source, name: str, directory: Path) -> Path:
    """Downloads one file of `source` into `directory`, checks its checksum and returns its path.

    The file appears under its name only when it is whole and its checksum holds.

    Raises:
        InputError: no connection, no such file there, a wrong checksum, or `directory` cannot be written.
    """
    address = source.address + name
    pooch.get_logger().setLevel("WARNING")  # stderr belongs to the program's own messages
    try:
        return Path(pooch.retrieve(address, known_hash=source.checksums[name], fname=name, path=directory))
    except (OSError, ValueError) as failure:  # pooch: a wrong checksum is a ValueError, all else an OSError
        raise InputError(
            f"{address} could not be fetched into {directory} ({failure}); allowed: a reachable address, "
            f"a folder that can be written and a file with the checksum {source.checksums[name]}. Try again, "
            f"or place {name} there by hand."
        ) from failure
