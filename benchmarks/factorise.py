"""Speed and error of the factorisation against torch and scikit-learn, on views of cut tensors.

    pip install 'nscjax[bench]'
    python benchmarks/factorise.py [--rounds 15]

All take turns in one process, so that a noisy machine is noisy for all; what counts are the medians of each round's
ratios. Ours is one warm call as the compressor makes it: subspace iteration, the other factor, the next basis. Rivals:
`torch.svd_lowrank(niter=2)`, a warm PowerSGD step in torch (project, QR, project), scikit-learn's `randomized_svd`. A
plain read-and-write of the matrix tells how far all are from the memory's speed. Matrices have singular values i^-0.7
and a little noise. Errors are relative to the truncated SVD's at the same rank.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Threads that spin after their work is done would slow down whoever is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from record import write
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from nscjax import compress, linalg
from nscjax.compress import rank
from nscjax.compress.low_rank import OVERSAMPLE, low_rank

VIEWS = ((32768, 32, 8), (131072, 64, 16), (2048, 512, 32), (128, 65536, 16), (4096, 2048, 32))
RIVALS = ("svd_lowrank", "power_sgd", "randomized_svd")
WARM_CALLS = 4
KEY = jax.random.key(0)


def made_matrix(m: int, n: int) -> np.ndarray:
    """Returns a float32 matrix with singular values about i^-0.7."""
    random = np.random.default_rng(0)
    short = min(m, n)
    left, _ = np.linalg.qr(random.normal(size=(m, short)))
    right, _ = np.linalg.qr(random.normal(size=(n, short)))
    matrix = (left * np.arange(1, short + 1) ** -0.7) @ right.T
    return (matrix + 1e-5 * random.normal(size=(m, n))).astype(np.float32)


def ours(matrix: jax.Array, r: int) -> tuple[Callable[[], Any], jax.Array]:
    """Returns (one warm call, its rank-r approximation)."""
    width = min(r + OVERSAMPLE, *matrix.shape)

    @jax.jit
    def call(matrix, basis):
        rows, _ = linalg.subspace_iteration(matrix, basis, KEY, iterations=1)
        images = linalg.to_short(matrix, rows)
        return rows, images, linalg.orthonormal_rows(images, KEY)

    basis = linalg.orthonormal_rows(jax.random.normal(KEY, (width, min(matrix.shape))), KEY)
    for _ in range(WARM_CALLS):
        rows, images, basis = call(matrix, basis)
    product = rows[:r].T @ images[:r]
    return lambda: jax.block_until_ready(call(matrix, basis)), product if matrix.shape[0] >= matrix.shape[
        1
    ] else product.T


def quantised(matrix: jax.Array, r: int, bits: int) -> tuple[Callable[[], Any], Callable[[], Any], jax.Array]:
    """Returns (one warm compression, one decompression, the approximation) by the compressor itself."""
    compressor = low_rank(rank.fixed(r), max_rank=r, factor_bits=bits)
    enc, dec = compressor.init(KEY, jax.ShapeDtypeStruct(matrix.shape, matrix.dtype))
    side = compress.SideInfo(key=KEY, budget_bytes=2**30)
    send, receive = jax.jit(compressor.compress), jax.jit(compressor.decompress)
    for _ in range(WARM_CALLS):
        payload, enc = send(matrix, enc, side)
    return (
        lambda: jax.block_until_ready(send(matrix, enc, side)),
        lambda: jax.block_until_ready(receive(payload, dec, side)),
        receive(payload, dec, side)[0],
    )


def rivals(matrix: np.ndarray, r: int) -> dict[str, Callable[[], Any]]:
    """Returns the rivals' calls by name."""
    tensor = torch.from_numpy(matrix)
    state = [torch.randn(matrix.shape[1], r)]

    def power_sgd():
        left, _ = torch.linalg.qr(tensor @ state[0])
        state[0] = tensor.T @ left

    return {
        "svd_lowrank": lambda: torch.svd_lowrank(tensor, q=r, niter=2),
        "power_sgd": power_sgd,
        "randomized_svd": lambda: randomized_svd(matrix, r, random_state=0),
    }


def relative_error(matrix: np.ndarray, approximation: Any) -> float:
    """Returns ||M - A||^2 / ||M||^2 in double precision."""
    difference = matrix.astype(np.float64) - np.asarray(approximation, np.float64)
    return float(np.sum(difference**2) / np.sum(matrix.astype(np.float64) ** 2))


def truncated_svd_error(matrix: np.ndarray, r: int) -> float:
    """Returns the least error that any rank-r approximation has."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    energies = np.linalg.eigvalsh(tall.T.astype(np.float64) @ tall.astype(np.float64))[::-1]
    return float(energies[r:].sum() / energies.sum())


def measure(m: int, n: int, r: int, rounds: int) -> dict[str, Any]:
    """Returns one row of the result."""
    matrix = made_matrix(m, n)
    on_device = jnp.asarray(matrix)
    scale = jax.jit(lambda matrix: matrix * 1.0001)
    call, approximation = ours(on_device, r)
    calls = {"ours": call, "read_write": lambda: jax.block_until_ready(scale(on_device)), **rivals(matrix, r)}
    least = truncated_svd_error(matrix, r)
    row: dict[str, Any] = {"view": f"{m}x{n} r{r}", "error_over_svd": relative_error(matrix, approximation) / least}
    for bits in (8, 4):
        calls[f"compress_{bits}_bits"], calls[f"decompress_{bits}_bits"], x_hat = quantised(on_device, r, bits)
        row[f"error_over_svd_{bits}_bits"] = relative_error(matrix, x_hat) / least
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, function in calls.items():
            # LAPACK under XLA on one thread, as the trainer has it; the rivals as they come.
            with threadpool_limits(limits=None if name in RIVALS else 1, user_api="blas"):
                function()  # brings caches and threads back from the one before
                started = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - started)
    warm = {name: times[2:] for name, times in seconds.items()}
    row["ours_ms"] = 1000 * statistics.median(warm["ours"])
    for name in warm:
        if name != "ours":
            ratios = [other / mine for other, mine in zip(warm[name], warm["ours"])]
            row[f"{name}_over_ours"] = statistics.median(ratios)
    return row


def main() -> None:
    """Measures all views and writes `benchmarks/results/factorise.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = []
    for view in VIEWS:
        rows.append(measure(*view, options.rounds))
        print(
            {name: value if isinstance(value, str) else round(value, 3) for name, value in rows[-1].items()}, flush=True
        )
    write("factorise", rows, seeds=[0])


if __name__ == "__main__":
    main()
