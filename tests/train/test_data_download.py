import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from nscjax.check import InputError
from tests.train.data_files import Settings, cifar_contents, made_splits, write_idx, write_tar
from train.data import load
from train.data.download import SOURCES, Source, fetch, find


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yields a folder and the address under which it is served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def _source(folder, address):
    return Source(
        address,
        {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in folder.iterdir()},
    )


def test_missing_mnist_is_fetched_once(server, tmp_path, monkeypatch):
    folder, address = server
    splits = made_splits(28, 28)
    write_idx(folder, splits)
    monkeypatch.setitem(SOURCES, "mnist", _source(folder, address))
    settings = Settings("mnist", str(tmp_path / "new" / "mnist"), download=True)
    np.testing.assert_array_equal(load(settings).x_train[..., 0], splits["x_train"])
    for path in folder.iterdir():
        path.unlink()
    np.testing.assert_array_equal(load(settings).y_test, splits["y_test"])


def test_missing_cifar10_is_fetched(server, tmp_path, monkeypatch):
    folder, address = server
    splits = made_splits(32, 32, 3)
    write_tar(folder / "cifar-10-python.tar.gz", cifar_contents(splits), "cifar-10-batches-py")
    monkeypatch.setitem(SOURCES, "cifar10", _source(folder, address))
    dataset = load(Settings("cifar10", str(tmp_path / "cifar10"), download=True))
    np.testing.assert_array_equal(dataset.x_test, splits["x_test"])


def test_what_is_there_is_not_fetched(tmp_path):
    (tmp_path / "second").write_bytes(b"here")
    source = Source("http://127.0.0.1:9/", {"first": "md5:0"})
    assert find(source, tmp_path, ("first", "second"), download=True) == tmp_path / "second"


def test_missing_file_is_named_with_what_fetches_it(tmp_path):
    with pytest.raises(InputError) as raised:
        load(Settings("mnist", str(tmp_path)))
    assert str(raised.value) == (
        f"data.dir is '{tmp_path}'; allowed: a folder that holds train-images-idx3-ubyte.gz or "
        "train-images-idx3-ubyte. `--data.download true` fetches train-images-idx3-ubyte.gz from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
    )
    with pytest.raises(InputError, match=r"holds cifar-10-batches-py or .* or cifar10.npz\. .*kriz/cifar-10-python"):
        load(Settings("cifar10", str(tmp_path)))


def test_wrong_checksum_is_refused_and_leaves_no_file(server, tmp_path):
    folder, address = server
    (folder / "made").write_bytes(b"right")
    source = _source(folder, address)
    (folder / "made").write_bytes(b"wrong")
    with pytest.raises(InputError, match=r"127.0.0.1.*/made could not be fetched .*hash.*Try again, or place made"):
        fetch(source, "made", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_absent_file_and_absent_server_are_named(server, tmp_path):
    _, address = server
    with pytest.raises(InputError, match=r"/absent could not be fetched into .*404"):
        fetch(Source(address, {"absent": "md5:0"}), "absent", tmp_path)
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/made could not be fetched .*a reachable address"):
        fetch(Source("http://127.0.0.1:9/", {"made": "md5:0"}), "made", tmp_path)


def test_folder_that_cannot_be_made_is_named(server, tmp_path):
    folder, address = server
    (folder / "made").write_bytes(b"content")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/under .*a folder that can be written"):
        fetch(_source(folder, address), "made", tmp_path / "file" / "under")


def test_every_source_has_checksums_of_full_length():
    lengths = {"md5": 32, "sha256": 64}
    for source in SOURCES.values():
        assert source.address.endswith("/")
        for checksum in source.checksums.values():
            algorithm, digits = checksum.split(":")
            assert len(digits) == lengths[algorithm]
