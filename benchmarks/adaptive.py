"""The rank follows the link: `nsc_sl` trained over every recorded trace, one run each.

    python benchmarks/adaptive.py CONFIG --traces DIR [--deadline_s 0.3] [--data_dir DIR] [--seeds N] [--jobs N]
        [--out DIR]

Every message is to arrive within the deadline; what a trace carries in that time by the estimate of the moment is the
frame's budget, at most 1 / RATIO of the float32 bytes. It writes `benchmarks/results/adaptive_CONFIG.json`, which
`time_to_target.py` reads; with another deadline `adaptive_CONFIG_deadline_S.json`, which it does not.
"""

import argparse
from pathlib import Path

import runs
from accuracy_vs_bytes import EVAL_EVERY, cut_shape, overrides

DEADLINE_S = 0.3
RATIO = 256
"""The best fixed ratio on most of the traces: more bytes than that do not train faster."""
COMMON = {
    "link.latency_ms": 30,
    "link.client_step_s": 0.1,
    "link.server_step_s": 0.1,
    "train.eval_every": EVAL_EVERY,
}
"""Of `time_to_target.py`'s link, and of the grid's runs."""


def main() -> None:
    """Makes the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a config in configs/, such as cifar10_bench")
    parser.add_argument("--traces", type=Path, required=True, help="folder of CSV traces (time_s,mbit_per_s)")
    parser.add_argument("--deadline_s", type=float, default=DEADLINE_S, help="of a message")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=runs.RUNS, help="where the runs are kept")
    options = parser.parse_args()
    ours = COMMON | overrides("nsc_sl", RATIO, cut_shape(options.config)) | {"link.deadline_s": options.deadline_s}
    cells = {path.stem: ours | {"link.trace": path.stem} for path in sorted(options.traces.glob("*.csv"))}
    is_default = options.deadline_s == DEADLINE_S
    runs.make(
        f"adaptive_{options.config}" + ("" if is_default else f"_deadline_{options.deadline_s}"),
        options.config,
        cells,
        dict.fromkeys(cells, options.seeds),
        data_dir=options.data_dir,
        jobs=options.jobs,
        out=options.out,
        traces=options.traces.resolve(),
    )


if __name__ == "__main__":
    main()
