"""Prediction with trained halves, together or each alone.

    python -m train.predict RUN_DIR IMAGES.npy

prints one class number a line for uint8 images [N, H, W, C], 0 to 255. In Python, `client` and `server` give each half,
and `tail` the client's last layers of a U-shaped network.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import check, models, split
from nscjax.types import Array
from train import checkpoint
from train.data import stream
from train.data.batches import normalise

BATCH_SIZE = 256


def client(
    run_dir: str | Path, model: split.SplitModel | None = None, like: split.Half | None = None
) -> Callable[[Array], Array]:
    """Returns the trained client's half as a function from inputs (uint8 images, or as trained) to smashed data.

    The function raises an `InputError` for inputs unlike those of training.

    Args:
        run_dir: of a finished run.
        model: your own, if the run was made with one.
        like: a half of your own model, such as the one that training began with: only its structure counts. Needed
            where parameters or state are something other than nested dicts and lists.
    """
    (params, state), about = _load(run_dir, "client", like)
    model = model or _build(about)
    shape, is_image = tuple(about["shape"]), about["mean"] is not None

    @jax.jit
    def apply(x):
        if is_image:
            x = normalise(x, jnp.asarray(about["mean"]), jnp.asarray(about["std"]))
        return model.client(params, state, x, False)[0]

    def checked(x):
        if x.shape[1:] != shape:
            raise check.error("shape of a sample", x.shape[1:], f"{shape}, as in training")
        if len(x) == 0:
            raise check.error("number of samples", 0, "at least 1")
        if is_image and x.dtype != np.uint8:
            raise check.error("type of the images", str(x.dtype), "uint8", "Scale them to 0..255 and convert them.")
        return apply(x)

    return checked


def server(
    run_dir: str | Path, model: split.SplitModel | None = None, like: split.Half | None = None
) -> Callable[[Array], Array]:
    """Returns the trained server's half as a function from smashed data to logits; arguments as in `client`.

    Of a U-shaped network it returns the second cut's tensor, which `tail` takes.
    """
    (params, state), about = _load(run_dir, "server", like)
    model = model or _build(about)
    return jax.jit(lambda smashed: model.server(params, state, smashed, False)[0])


def tail(
    run_dir: str | Path, model: split.SplitModel | None = None, like: split.Half | None = None
) -> Callable[[Array], Array]:
    """Returns the client's last layers of a U-shaped network, from what the server's half returns to logits.

    Arguments as in `client`.

    Raises:
        InputError: the network of the run is not U-shaped.
    """
    (params, state), about = _load(run_dir, "client", like)
    model = model or _build(about)
    if model.tail_apply is None:
        raise check.error("network of the run", str(run_dir), "one with a second cut (model.second_cut)")
    return jax.jit(lambda features: model.tail(params, state, features, False)[0])


def _load(run_dir: str | Path, half: str, like: split.Half | None) -> tuple[split.Half, dict[str, Any]]:
    return checkpoint.load_half(Path(run_dir) / "halves" / half, like)


def _build(about: dict[str, Any]) -> split.SplitModel:
    if "architecture" not in about:
        raise check.error("model", None, "the SplitModel of the run", "This run was made with a model of your own.")
    return models.build(**about["architecture"])


def _warn_of_dark(images: np.ndarray, mean: list[float] | None) -> None:
    """Says so where nothing in the images is as bright as the mean in training: they were hardly scaled as those."""
    if mean is not None and images.size and images.max() < 255 * min(mean):
        told = (
            f"the largest value of the first images is {images.max()}, the mean in training was {255 * min(mean):.0f}"
        )
        print(f"warning: {told}: are they scaled alike?", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a class number for every image; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if {"-h", "--help"} & set(words):
            print(__doc__)
            return 0
        if len(words) != 2:
            raise check.error("command line", " ".join(words), "RUN_DIR IMAGES.npy")
        images = stream.memory_map(words[1])
        if images.ndim != 4 or images.dtype != np.uint8:
            raise check.error(words[1], f"{images.dtype} {images.shape}", "uint8 [N, H, W, C]")
        layers = [client(words[0]), server(words[0])]
        _, about = _load(words[0], "client", None)
        _warn_of_dark(images[:BATCH_SIZE], about["mean"])
        if about.get("architecture", {}).get("second_cut"):
            layers.append(tail(words[0]))
        for start in range(0, len(images), BATCH_SIZE):
            passed = jnp.asarray(images[start : start + BATCH_SIZE])
            for apply in layers:
                passed = apply(passed)
            print("\n".join(str(label) for label in np.argmax(passed, axis=-1)), flush=True)
    except BrokenPipeError:  # whoever reads has enough
        sys.stdout = None
    except (check.InputError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
