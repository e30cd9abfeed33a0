"""Images and labels: from files to batches on the device.

`load` gives a whole `Dataset` as arrays in memory, whatever its source. `batches` orders, takes, augments and
normalises batches inside jit; `stream` gives the same batches of data sets that are larger than the device's
memory.

Rooms, each importing only those before it: `checks` (what images and labels must be), `download` (finding
files and fetching missing ones), `formats` (idx and .npz), `cifar` (CIFAR-10's own files), `images` (folders
of image files), `dataset` (all of them as one `Dataset`), `batches`, `stream`. Libraries: numpy, jax (in
`batches` and `stream`), pooch, scikit-learn (its bundled digits) and, as optional extras, pillow (`images`)
and grain (`stream`).
"""

from train.data.dataset import NAMES, Dataset, DataSettings, can_flip, load, load_labels

__all__ = ["NAMES", "DataSettings", "Dataset", "can_flip", "load", "load_labels"]
