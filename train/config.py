"""The config: every value with its default and its meaning, read from a TOML file and from the command line.

Defaults stand in the frozen dataclasses below and nowhere else; their docstrings are the text of `--help`.
The file wins over the defaults, the command line over the file. Readers meet `Config`; `load`, which makes
one from a command line; `to_toml` and `from_toml`, which write and read a run folder's `config.toml`;
`fingerprint`, which tells whether two runs are the same; and `unused_keys`. No jax here: `--help` and a
mistyped key are answered at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import tomli_w
from jsonargparse import ArgumentError, ArgumentParser

from nscjax import check


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from.

    Attributes:
        name: `digits`, `mnist`, `fashion_mnist`, `cifar10`, or your own images as `npz` or `image_folder`.
        dir: its folder (for `npz` the file; `digits` needs none); by default `data/NAME` under the working folder.
        num_train: use only so many training samples, at least 1; by default all.
        num_test: use only so many test samples, at least 1; by default all.
        augment: move the training images at random, and mirror those that may be mirrored.
        download: fetch files that are missing from their official address.
        stream: read the training batches from the host as they are needed (by grain) instead of keeping all of them
            on the device; the batches are the same.
    """

    name: str = "digits"
    dir: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    augment: bool = False
    download: bool = False
    stream: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and where it is cut; its input shape and number of classes come from the data.

    Attributes:
        name: the network: `mlp`, `cnn`, `resnet8`, `resnet18`, `resnet34` or `vit`.
        width: channels (or features) of its first stage, 1 to 65536.
        cut: the stage that is the client's last; a wrong one is answered with the network's stages.
        norm: the normalisation layer, `batch` or `group`.
        bottleneck: channels of a learned bottleneck at the cut (BottleNet++), at least 1; by default none.
        second_cut: the stage that is the server's last, after `cut`: the rest is the client's again (U-shaped), and no
            label is sent; by default the server has the rest.
    """

    name: str = "resnet8"
    width: int = 16
    cut: str = "stage2"
    norm: str = "batch"
    bottleneck: int | None = None
    second_cut: str | None = None


@dataclasses.dataclass(frozen=True)
class DirectionConfig:
    """How one direction of a cut is compressed: `up` and `second_down` activations, the others their gradients.

    Attributes:
        method: the compressor, `nsc_sl`, `nsc_rd`, `identity` or a peer's (`nscjax/compress/baselines`); a key that it
            does not use is ignored and named in the log.
        max_rank: most components that one message of low rank carries, at least 1; of `nsc_rd`: the most rows of the
            basis along places. Gradients of `nsc_rd` have this, `max_features`, `mean_bits` and `places` of their
            activations.
        energy: share of the squared norm that the components sent must hold, in (0, 1]; of `nsc_rd`: that is enough.
        factor_bits: most bits of one entry of a factor.
        iterations: subspace iterations for one message, 1 to 100.
        feedback: where the residual goes: nowhere, into the next step, or back to its own sample.
        feedback_decay: factor on the residual that is carried over, in (0, 1].
        view: axes of the cut tensor that are the matrix's rows, and those that are its columns: `BHW,C`,
            `B,HWC`, `BC,HW`, `BC,hw` (the slowest quarter of the cosines of either axis alone) or `BH,WC` for images,
            `BT,D` or `B,TD` for tokens, `B,D` for vectors;
            `calibrate` takes the best on the first batch, `auto` goes by the shape alone.
        ratio: caps every frame at the raw float32 size divided by this, at least 1; by default no cap.
        rank: of `powersgd` and `truncated_svd`: components of every message, at least 1; by default what the budget
            affords.
        k: of the sparse methods: entries kept of every sample, at least 1; by default what the budget affords.
        bits: of the quantisers: bits of an entry (`splitfc`: on average; `fedlite`: of a subvector), at least 1; by
            default what the budget affords.
        alpha: of `rand_top_k`: probability that a draw falls outside the top, in (0, 1].
        groups: of `sl_acc`: groups of channels; of `c3_sl`: sums of samples in one batch; at least 1.
        subvector: of `fedlite`: entries of a subvector, at least 1.
        most_bits: of `fedlite`: the most bits of a subvector that a budget may choose, 1 to 16.
        weight: of `fedlite`: of the correction of the sender's gradient, by default 0.005; of `nsc_rd`: of the rate
            penalty in the sender's loss, by default 0; of activations alone, at least 0.
        max_features: of `nsc_rd`: the most rows of the basis along features, at least 1; by default 64.
        mean_bits: of `nsc_rd`: bits of a coefficient with which a budget's rows of places are counted, at least 0: of
            all rows; by default 2.
        places: of `nsc_rd`: the basis along places, `learned`, `slow` (learned among the slowest quarter of the
            cosines of either axis) or `cosines`.
        bands: of `dct`: the most bands of frequencies that get bits, the lowest first, at least 1; by default all.
        threshold: of `sl_fac`: share of the energy in the low frequencies, in (0, 1].
        error_feedback: of `powersgd`: whether what was not sent is added to the next message.
    """

    method: str = "nsc_sl"
    max_rank: int = 64
    energy: float = 1.0
    factor_bits: Literal[4, 8, 16] = 8
    iterations: int = 1
    feedback: Literal["none", "across_steps", "per_sample"] = "none"
    feedback_decay: float = 0.9
    view: str = "auto"
    ratio: float | None = None
    rank: int | None = None
    k: int | None = None
    bits: int | None = None
    alpha: float | None = None
    groups: int | None = None
    subvector: int | None = None
    most_bits: int | None = None
    weight: float | None = None
    max_features: int | None = None
    mean_bits: int | None = None
    places: Literal["learned", "slow", "cosines"] = "learned"
    bands: int | None = None
    threshold: float | None = None
    error_feedback: bool | None = None


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How the cut is compressed.

    Attributes:
        up: from client to server: activations.
        down: from server to client: gradients.
        second_down: of `model.second_cut`, from server to client: activations.
        second_up: of `model.second_cut`, from client to server: gradients.
    """

    up: DirectionConfig = DirectionConfig()
    down: DirectionConfig = DirectionConfig()
    second_down: DirectionConfig = DirectionConfig()
    second_up: DirectionConfig = DirectionConfig()

    def ways(self, is_u_shaped: bool) -> dict[str, DirectionConfig]:
        """Returns the directions there are by name: of every cut the activations', then their gradients'."""
        names = ("up", "down", *(("second_down", "second_up") if is_u_shaped else ()))
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class LinkConfig:
    """The simulated link, on a virtual clock; by default it is unlimited.

    With role `client` the link is a real one: `deadline_s`, `estimator`, `late_share` and `initial_mbps` hold for what
    is measured of it, and the client holds its messages back as long as the link that the other keys describe would.

    Attributes:
        up_mbps: constant uplink bandwidth in Mbit/s, 1e-6 to 1e9.
        down_mbps: constant downlink bandwidth in Mbit/s, 1e-6 to 1e9.
        trace: CSV file (`time_s,mbit_per_s`) of the bandwidth of both directions; excludes `up_mbps`,
            `down_mbps`, `up_trace` and `down_trace`.
        up_trace: CSV file of the uplink's bandwidth; excludes `up_mbps`.
        down_trace: CSV file of the downlink's bandwidth; excludes `down_mbps`.
        latency_ms: time a message takes however short it is, in milliseconds, at least 0.
        deadline_s: seconds that one message may take, above 0: sets its budget; by default no deadline.
        client_step_s: seconds the client computes in one step, at least 0.
        server_step_s: seconds the server computes in one step, at least 0.
        estimator: how the bandwidth is estimated from past transfers: `ewma`, `harmonic` or `quantile`.
        late_share: share of the messages that `quantile` lets take longer than the deadline, above 0, at most 1: the
            smaller, the less of the link is used.
        initial_mbps: the estimate before the first transfer in Mbit/s, 1e-6 to 1e9.
    """

    up_mbps: float | None = None
    down_mbps: float | None = None
    trace: str | None = None
    up_trace: str | None = None
    down_trace: str | None = None
    latency_ms: float = 0.0
    deadline_s: float | None = None
    client_step_s: float = 0.0
    server_step_s: float = 0.0
    estimator: str = "quantile"
    late_share: float = 0.1
    initial_mbps: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How both halves are trained, and what is written when.

    Attributes:
        epochs: passes over the training data, at least 1.
        steps: number of steps, at least 1; if given, it wins over `epochs`.
        batch_size: samples in one step, at least 1.
        optimizer: of both halves; `sgd` has Nesterov momentum 0.9.
        learning_rate: its highest value, above 0.
        schedule: course of the learning rate after the warm-up; `cosine` and `linear` end at 0.
        warmup: share of the run in which the learning rate rises from 0, in [0, 1).
        weight_decay: strength of the weight decay, at least 0.
        dtype: type of the network's arithmetic; parameters stay float32.
        log_every: steps from one line of metrics to the next, at least 1.
        eval_every: steps from one evaluation to the next; 0 is once an epoch.
        checkpoint_every: steps from one checkpoint to the next; 0 is once an epoch.
        resume: go on from the run folder's newest whole checkpoint; with none, start afresh.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 5e-4
    dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    resume: bool = False


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Two parties over a network; counts with `role` `server` and `client` alone.

    Attributes:
        address: where the server listens and the client finds it, `host:port`.
        certs: folder of the certificates that `make certs` makes.
        plain_text: no encryption and no certificates; on loopback alone.
        timeout_s: seconds that one attempt to get an answer may take, above 0; the first step compiles.
        patience_s: seconds after which a client gives up a server that does not answer, at least 0.
        eval_uncompressed: also send the cut as it is in evaluations, for the accuracy with the cut left alone.
        labels: which party has the labels, `client` or `server`; those of the other's data are not looked at.
        labels_file: of the server, if it has them: an .npz file with `y_train` and `y_test`, in the order of the
            client's data.
        serve: what the server is there for: `training`, or `predictions` with the finished run in its run_dir, until it
            is stopped.
        max_clients: clients that may ask for predictions, each known by its certificate, at least 1; a run has one.
        max_calls: calls that the server takes at a time, at least 1; more are refused, and come again.
        max_bytes: the largest message that the server takes, at least 1024: a batch of the cut as it is, twice.
    """

    address: str = "127.0.0.1:50551"
    certs: str = "certs"
    plain_text: bool = False
    timeout_s: float = 120.0
    patience_s: float = 300.0
    eval_uncompressed: bool = False
    labels: Literal["client", "server"] = "client"
    labels_file: str = ""
    serve: Literal["training", "predictions"] = "training"
    max_clients: int = 16
    max_calls: int = 4
    max_bytes: int = 1 << 28


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        seed: of everything random, in [0, 2**32).
        run_dir: folder that the run writes; by default `runs/NAME` of the config file.
        overwrite: replace what an earlier run left in `run_dir`.
        role: which party this process is: `local` (both), `server` or `client`.
        predict: an .npy file of inputs: instead of training, print a class a line with the finished run in run_dir.
        data: what is learned from.
        model: the network and where it is cut.
        compress: how the cut is compressed.
        link: the simulated link.
        remote: how two parties meet.
        train: how both halves are trained.

    Raises:
        InputError: a value is out of range, or two values exclude each other.
    """

    seed: int = 0
    run_dir: str = ""
    overwrite: bool = False
    role: Literal["local", "server", "client"] = "local"
    predict: str = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    compress: CompressConfig = CompressConfig()
    link: LinkConfig = LinkConfig()
    remote: RemoteConfig = RemoteConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        """Checks types and ranges here, so that a config built in Python is held to them as well."""
        object.__setattr__(self, "run_dir", str(self.run_dir))  # a path will do
        for key, value in _flatten(dataclasses.asdict(self)).items():
            typed = _typed(key, value)
            if type(typed) is not type(value) and not isinstance(typed, float):
                raise check.error(key, value, f"a value of type {type(typed).__name__}")
            for allowed, holds, names in _RANGES:
                if value is not None and key.rpartition(".")[2] in names and not holds(value):
                    raise check.error(key, value, allowed)
        for name, rival in _RIVALS:
            value = getattr(self.link, name)
            if value is not None and getattr(self.link, rival) is not None:
                remedy = f"Leave one of the two out (on the command line: --link.{rival} null)."
                raise check.error(f"link.{name}", value, f"nothing beside link.{rival}", remedy)
        if self.role != "local":
            self._require_remote()

    def _require_remote(self) -> None:
        """Raises an `InputError` for what two parties cannot do."""
        found = _ADDRESS.fullmatch(self.remote.address)
        if not found or int(found[1]) >= 1 << 16:
            raise check.error("remote.address", self.remote.address, "host:port, as in gpu.example.org:50551")
        if self.predict and self.role == "server":
            remedy = "The client has the inputs; the server serves with --remote.serve predictions."
            raise check.error("predict", self.predict, "nothing with role 'server'", remedy)
        for name in ("client_step_s", "server_step_s"):
            if value := getattr(self.link, name):
                raise check.error(f"link.{name}", value, f"0 with role {self.role!r}", "Both parties compute for real.")
        for way, direction in self.compress.ways(self.model.second_cut is not None).items():
            if direction.view == "calibrate":
                remedy = "It needs both halves in one process: calibrate in a local run, and give what it found."
                raise check.error(
                    f"compress.{way}.view", "calibrate", f"'auto' or a view's name with role {self.role!r}", remedy
                )
        if self.data.stream:
            raise check.error("data.stream", True, f"false with role {self.role!r}")
        if self.model.second_cut is not None and self.remote.labels == "server":
            remedy = "Of a U-shaped network the client computes the loss: leave model.second_cut or remote.labels out."
            raise check.error("remote.labels", "server", "'client' with model.second_cut", remedy)


_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
"""A name, an IPv4 address, or an IPv6 one in brackets; a port."""

LINK_RATES = ("up_mbps", "down_mbps", "trace", "up_trace", "down_trace")
"""Keys of `LinkConfig` that say how fast the link is."""


class Loaded(NamedTuple):
    """What the command line asks for."""

    config: Config
    explicit: frozenset[str]  # dotted keys given in the file or on the command line, whatever their value


_SECTIONS = {
    "": Config,
    "data": DataConfig,
    "model": ModelConfig,
    "compress": CompressConfig,
    "compress.up": DirectionConfig,
    "compress.down": DirectionConfig,
    "compress.second_down": DirectionConfig,
    "compress.second_up": DirectionConfig,
    "link": LinkConfig,
    "remote": RemoteConfig,
    "train": TrainConfig,
}
_TYPES: Mapping[str, Any] = {  # of every dotted key
    f"{section}.{field.name}".lstrip("."): field.type
    for section, part in _SECTIONS.items()
    for field in dataclasses.fields(part)
    if not dataclasses.is_dataclass(field.type)
}
_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
# What is allowed, whether a value is, and which keys by their last name.
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("a whole number in [0, 2**32)", lambda value: 0 <= value < 2**32, ("seed",)),
    (
        "a number in (0, 1]",
        lambda value: 0 < value <= 1,
        ("energy", "feedback_decay", "alpha", "threshold", "late_share"),
    ),
    (
        "a number >= 1",
        lambda value: value >= 1,
        ("rank", "k", "bits", "bands", "groups", "subvector", "bottleneck", "max_features"),
    ),
    ("a number in [1, 16]", lambda value: 1 <= value <= 16, ("most_bits",)),
    ("a number in [0, 1)", lambda value: 0 <= value < 1, ("warmup",)),
    ("4, 8, 16", lambda value: value in (4, 8, 16), ("factor_bits",)),
    ("a number in [1, 100]", lambda value: 1 <= value <= 100, ("iterations",)),
    ("a number in [1, 65536]", lambda value: 1 <= value <= 65536, ("width",)),
    (
        "a number >= 1",
        lambda value: value >= 1,
        ("num_train", "num_test", "max_rank", "ratio", "log_every", "max_clients", "max_calls"),
    ),
    ("a number in [1024, 2**28]", lambda value: 1024 <= value <= 1 << 28, ("max_bytes",)),
    ("a number in [1, 2**31)", lambda value: 1 <= value < 2**31, ("epochs", "steps", "batch_size")),
    ("a number >= 0", lambda value: value >= 0, ("eval_every", "checkpoint_every", "mean_bits")),
    # Times and sizes that arise from these stay within float32.
    ("a number in [0, 1e9]", lambda value: 0 <= value <= 1e9, ("latency_ms", "client_step_s", "server_step_s")),
    ("a number in [0, 1e9]", lambda value: 0 <= value <= 1e9, ("weight_decay", "weight")),
    ("a number in [1e-6, 1e9]", lambda value: 1e-6 <= value <= 1e9, ("up_mbps", "down_mbps", "initial_mbps")),
    ("a number in (0, 1e9]", lambda value: 0 < value <= 1e9, ("deadline_s", "timeout_s")),
    ("a number in [0, 1e9]", lambda value: 0 <= value <= 1e9, ("patience_s",)),
    ("a number in (0, 1e30]", lambda value: 0 < value <= 1e30, ("learning_rate",)),
)
_RIVALS = (
    *((name, "trace") for name in ("up_mbps", "down_mbps", "up_trace", "down_trace")),
    ("up_mbps", "up_trace"),
    ("down_mbps", "down_trace"),
)
_NOT_HASHED = ("role", "run_dir", "predict", "overwrite", "data.download", "train.resume")
_COMMAND_LINE = "command line"


def load(argv: Sequence[str]) -> Loaded:
    """Returns the config that a command line asks for; answers `--help` and `--print_config` itself.

    Args:
        argv: the words after the program's name.

    Raises:
        InputError: the file or the command line cannot be used.
        SystemExit: with code 0, after `--help` or `--print_config`.
    """
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    words = _split(argv)
    print_only, path = "print_config" in words, words.get("config")
    if path is None:
        remedy = "Give one, as in --config configs/quickstart.toml; --help lists its keys."
        raise check.error("--config", path, "a TOML file", remedy)
    from_file = _parse(_read(path), path)
    from_words = {key: _convert(parser, key, word) for key, word in words.items() if key in _TYPES}
    _build(from_file, path)  # alone first: a mistake in the file is then reported as the file's
    config = _build(from_file | from_words, _COMMAND_LINE)
    if not config.run_dir:
        config = dataclasses.replace(config, run_dir=str(Path("runs", Path(path).stem)))
    if print_only:
        sys.stdout.write(to_toml(config))
        raise SystemExit(0)
    return Loaded(config, frozenset(from_file | from_words))


def to_toml(config: Config) -> str:
    """Returns the config as TOML; values that are None are left out. `from_toml` is the inverse."""
    return tomli_w.dumps(dataclasses.asdict(config, dict_factory=_without_none))


def from_toml(source: str | Path) -> Config:
    """Returns the config in a TOML text (a `str`) or file (a `Path`); `run_dir` stays as it is written there.

    Raises:
        InputError: the file cannot be read, or a key or value in it cannot be used.
    """
    name = str(source) if isinstance(source, Path) else "TOML text"
    raw = _read(name) if isinstance(source, Path) else source.encode()
    return _build(_parse(raw, name), name)


def fingerprint(config: Config) -> str:
    """Returns the SHA-256 hex digest of every value that counts: not where and how a run is made, but what it is.

    `role`, `run_dir`, `predict`, `overwrite`, `remote`, `data.download` and `train.resume` do not count.
    """
    values = flat(config)
    hashed = {key: value for key, value in values.items() if _counts(key)}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def flat(config: Config) -> dict[str, Any]:
    """Returns every value by its dotted key."""
    return _flatten(dataclasses.asdict(config))


def differing_keys(one: Config, other: Config) -> tuple[str, ...]:
    """Returns the dotted keys of all values that count for `fingerprint` and differ between two configs."""
    ones, others = flat(one), flat(other)
    return tuple(key for key in ones if _counts(key) and ones[key] != others[key])


def _counts(key: str) -> bool:
    return key not in _NOT_HASHED and not key.startswith("remote.")


def value(config: Config, key: str) -> Any:
    """Returns the value of a dotted key."""
    return flat(config)[key]


def resumed(config: Config) -> Config:
    """Returns the config of the same run that goes on from its newest checkpoint."""
    return dataclasses.replace(config, overwrite=False, train=dataclasses.replace(config.train, resume=True))


def unused_keys(explicit: Iterable[str], direction: str, used: Iterable[str]) -> tuple[str, ...]:
    """Returns, sorted, the keys given for a direction that have no effect.

    Args:
        explicit: the dotted keys given, as in `Loaded.explicit`.
        direction: whose keys to look at, such as "up".
        used: names of the direction's keys that have one.
    """
    prefix = f"compress.{direction}."
    given = {key.removeprefix(prefix) for key in explicit if key.startswith(prefix)}
    return tuple(sorted(prefix + name for name in given.difference(used)))


def _parser() -> ArgumentParser:
    """Returns the parser that writes the text of `--help` and turns words into values."""
    parser = ArgumentParser(
        usage="python train/main.py --config FILE [--section.key value ...]",
        description="Trains a split model. The file wins over the defaults, the command line over the file.",
        parser_mode="toml",
        exit_on_error=False,
    )
    parser.add_argument("--config", type=str, metavar="FILE", help="TOML file with any of the values below")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and exit")
    for section, part in _SECTIONS.items():
        own = {field.name for field in dataclasses.fields(part) if dataclasses.is_dataclass(field.type)}
        group = parser.add_argument_group(section or "run", (part.__doc__ or "").splitlines()[0])
        group.add_class_arguments(part, section or None, as_group=False, skip=own)
    return parser


def _split(argv: Sequence[str]) -> dict[str, str]:
    """Returns key -> word of `--key word` and `--key=word`; of a repeated key the last counts."""
    words: dict[str, str] = {}
    rest = iter(argv)
    for option in rest:
        key, has_word, word = option.removeprefix("--").partition("=")
        if not option.startswith("--"):
            raise check.error(f"{_COMMAND_LINE}: word", option, "--config FILE and --section.key VALUE")
        if option == "--print_config":
            words[key] = word
            continue
        if key != "config":
            _require_key(key, _COMMAND_LINE)
        if not has_word:
            word = next(rest, "--")
            if word.startswith("--"):
                raise check.error(f"{_COMMAND_LINE}: --{key}", None, f"a value, as in --{key} VALUE")
        words[key] = word
    return words


def _read(path: str) -> bytes:
    """Returns what is in a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        near = check.nearest(path, map(str, Path(path).parent.glob("*.toml")))
        raise check.error("config file", path, f"a TOML file ({error.strerror})", near) from None


def _parse(raw: bytes, source: str) -> dict[str, Any]:
    """Returns dotted key -> value of TOML, keys and types checked."""
    try:
        values = _flatten(tomllib.loads(raw.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8 and integers beyond reason
        raise check.InputError(f"{source} is not valid TOML: {error}.") from None
    values = {key: value for key, value in values.items() if not (key in _SECTIONS and value == {})}
    for key in values:
        _require_key(key, source)
    return {key: _typed(key, value, source) for key, value in values.items()}


def _convert(parser: ArgumentParser, key: str, word: str) -> Any:
    """Returns the value that a word of the command line stands for, type checked."""
    value: Any = word
    with contextlib.suppress(ArgumentError, OverflowError):  # the word stays a word, which `_typed` judges
        value = parser.parse_object({key: word}, defaults=False)[key]
    return _typed(key, value, _COMMAND_LINE)


def _typed(key: str, value: Any, source: str = "") -> Any:
    """Returns `value` in its key's type, whole numbers being numbers too; else raises an `InputError`."""
    name, expected = f"{source}: {key}" if source else key, _TYPES[key]
    kinds = get_args(expected) or (expected,)
    if get_origin(expected) is Literal:
        return kinds[kinds.index(check.one_of(name, value, kinds))]
    if type(value) is int and float in kinds:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
        raise check.error(name, value, " or ".join(_NOUNS[kind] for kind in kinds if kind in _NOUNS))
    return value


def _require_key(key: str, source: str) -> None:
    """Raises an `InputError` with its neighbours and the nearest key if there is no value of this name."""
    if key in _TYPES:
        return
    options = ("config", "print_config") if source == _COMMAND_LINE else ()
    names = [name for name in (*_TYPES, *_SECTIONS, *options) if name]
    parent, _, leaf = key.rpartition(".")
    section = key if key in _SECTIONS else parent if parent in _SECTIONS else ""
    allowed = ", ".join(name for name in names if name.rpartition(".")[0] == section)

    def likeness(name: str) -> tuple[float, float]:  # last names first: train.width is nearest to model.width
        last = name.rpartition(".")[2]
        return SequenceMatcher(None, leaf, last).ratio(), SequenceMatcher(None, key, name).ratio()

    nearest = max(names, key=likeness)
    is_near = nearest != key and likeness(nearest)[0] >= 0.6
    raise check.error(f"{source}: key", key, allowed, f"Did you mean {nearest!r}?" if is_near else "")


def _build(values: Mapping[str, Any], source: str) -> Config:
    """Returns the config with these values, ranges checked, and the defaults elsewhere."""
    try:
        return _replace(Config(), values)
    except check.InputError as error:
        raise check.InputError(f"{source}: {error}") from None


def _replace(part: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns a dataclass with the values of dotted keys put in, inner dataclasses included."""
    changes = {}
    for field in dataclasses.fields(part):
        key = prefix + field.name
        if key in _SECTIONS:
            changes[field.name] = _replace(getattr(part, field.name), values, f"{key}.")
        elif key in values:
            changes[field.name] = values[key]
    return dataclasses.replace(part, **changes)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of nested tables; an empty table counts as a value."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        flat |= _flatten(value, f"{key}.") if isinstance(value, dict) and value else {key: value}
    return flat


def _without_none(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a table of these items without those whose value is None, which TOML has not."""
    return {name: value for name, value in items if value is not None}
