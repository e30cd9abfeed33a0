import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from nscjax.check import InputError
from train import config
from train.config import CompressConfig, Config, DataConfig, DirectionConfig, LinkConfig, TrainConfig

SECTIONS = {
    "data": config.DataConfig,
    "model": config.ModelConfig,
    "compress.up": DirectionConfig,
    "compress.down": DirectionConfig,
    "link": LinkConfig,
    "train": TrainConfig,
}
KEYS = ["seed", "run_dir", "overwrite", "role"] + [
    f"{section}.{field.name}" for section, part in SECTIONS.items() for field in dataclasses.fields(part)
]

NUMBERS = ["seed"] + [
    f"{section}.{field.name}"
    for section, part in SECTIONS.items()
    for field in dataclasses.fields(part)
    if field.type in (int, float, int | None, float | None)
]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a config file into a folder of its own, and returns the name that the command line gives it."""
    monkeypatch.chdir(tmp_path)

    def write(text="", name="test.toml"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def load(name, *words):
    return config.load(["--config", name, *words])


def refusal(*argv):
    """Returns the message with which a command line is refused; it is one message of one line."""
    with pytest.raises(InputError) as caught:
        config.load(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_level_of_precedence(file):
    name = file("seed = 3\n[train]\nepochs = 5\nbatch_size = 32\n[compress.up]\nmax_rank = 8\n")
    loaded = load(name, "--train.epochs", "7", "--compress.down.max_rank=9")
    assert loaded.config == Config(
        seed=3,
        run_dir="runs/test",
        compress=CompressConfig(up=DirectionConfig(max_rank=8), down=DirectionConfig(max_rank=9)),
        train=TrainConfig(epochs=7, batch_size=32),
    )
    assert loaded.explicit == {
        "seed",
        "train.epochs",
        "train.batch_size",
        "compress.up.max_rank",
        "compress.down.max_rank",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "[train]\n[compress.up]\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_all_defaults(file, text):
    loaded = load(file(text))
    assert loaded.config == Config(run_dir="runs/test")
    assert loaded.explicit == frozenset()


def test_a_value_equal_to_the_default_counts_as_given(file):
    assert load(file("[train]\nepochs = 10\n")).explicit == {"train.epochs"}


def test_run_dir_is_named_after_the_file_unless_given(file):
    assert load(file(name="small.run.toml")).config.run_dir == "runs/small.run"
    assert load(file('run_dir = "elsewhere"\n')).config.run_dir == "elsewhere"
    assert load(file(), "--run_dir", "there").config.run_dir == "there"


@pytest.mark.parametrize("words", [("--train.weight_decay", "0"), ("--train.weight_decay=0",)])
def test_both_forms_of_an_override(file, words):
    weight_decay = load(file(), *words).config.train.weight_decay
    assert weight_decay == 0.0
    assert isinstance(weight_decay, float)


def test_the_last_of_a_repeated_key_counts(file):
    assert load(file(), "--seed", "1", "--seed=2").config.seed == 2


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_forms_of_a_bool(file, word, value):
    assert load(file(f"overwrite = {str(not value).lower()}"), "--overwrite", word).config.overwrite is value


@pytest.mark.parametrize(("word", "value"), [("1", 1.0), ("1e-3", 1e-3), (".5", 0.5), ("2.", 2.0), ("5E-4", 5e-4)])
def test_forms_of_a_number(file, word, value):
    learning_rate = load(file(), "--train.learning_rate", word).config.train.learning_rate
    assert (learning_rate, type(learning_rate)) == (value, float)


def test_an_int_in_the_file_is_taken_for_a_float(file):
    learning_rate = load(file("[train]\nlearning_rate = 1\n")).config.train.learning_rate
    assert (learning_rate, type(learning_rate)) == (1.0, float)


def test_a_word_for_a_text_stays_as_it_is(file):
    for word in ("3", "true", "[1]", "a = 1", "x.toml", "BHW,C", ""):
        assert load(file(), "--model.name", word).config.model.name == word


def test_null_takes_an_optional_value_back(file):
    name = file('[train]\nsteps = 5\n[link]\ntrace = "lte.csv"\n')
    loaded = load(name, "--train.steps", "null", "--link.trace", "null", "--link.up_mbps", "2")
    assert loaded.config.train.steps is None
    assert loaded.config.link == LinkConfig(up_mbps=2.0)
    assert {"train.steps", "link.trace", "link.up_mbps"} <= loaded.explicit


def test_print_config_is_read_back_as_the_same_config(file, capsys):
    name = file("[data]\nnum_train = 64\n[compress.up]\nratio = 8\n")
    words = ("--train.learning_rate", "1e-05", "--run_dir", 'a "b"\\c')
    with pytest.raises(SystemExit) as caught:
        load(name, *words, "--print_config")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    expected = load(name, *words).config
    assert config.from_toml(printed) == expected
    assert load(file(printed, "again.toml")).config == expected


def test_toml_has_every_key_but_those_that_are_none():
    assert tomllib.loads(config.to_toml(Config()))["link"] == {
        "latency_ms": 0.0,
        "client_step_s": 0.0,
        "server_step_s": 0.0,
        "estimator": "quantile",
        "late_share": 0.1,
        "initial_mbps": 1.0,
    }
    assert config.from_toml(config.to_toml(Config())) == Config()


def test_from_toml_reads_a_path_and_names_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(Config(seed=5)))
    assert config.from_toml(path) == Config(seed=5)
    path.write_text("sed = 5")
    with pytest.raises(InputError, match=re.escape(f"{path}: key is 'sed'; ") + ".*Did you mean 'seed'"):
        config.from_toml(path)
    with pytest.raises(InputError, match="TOML text: key is 'sed'"):
        config.from_toml("sed = 5")


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--config", "absent.toml", "--help"]])
def test_help_lists_every_key_with_its_meaning_and_default(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        config.load(argv)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for key in KEYS:
        (text,) = re.findall(rf"^  --{re.escape(key)} .*(?:\n {{10,}}.*)*", printed, re.MULTILINE)
        meaning = re.fullmatch(r"--\S+ \S+ (.+) \(type: .*, default: .*\)", " ".join(text.split()))
        assert meaning is not None, text
        assert len(meaning[1]) > 10, text
    assert "--config FILE" in printed
    assert "--print_config" in printed


def test_no_config_is_an_error_that_says_to_give_one():
    expected = "--config is None; allowed: a TOML file. Give one, as in --config configs/quickstart.toml; "
    assert refusal() == refusal("--seed", "1") == expected + "--help lists its keys."


def test_a_missing_file_is_named_and_so_is_the_nearest(file):
    file(name="quickstart.toml")
    expected = "config file is 'quikstart.toml'; allowed: a TOML file (No such file or directory). "
    assert refusal("--config", "quikstart.toml") == expected + "Did you mean 'quickstart.toml'?"
    assert refusal("--config", "no/such/x.toml").startswith("config file is 'no/such/x.toml'; allowed: a TOML")
    assert refusal("--config", "quickstart.toml/x.toml").endswith("(Not a directory).")
    assert refusal("--config=").startswith("config file is ''; ")


def test_a_folder_is_no_config(file, tmp_path):
    (tmp_path / "configs").mkdir()
    assert refusal("--config", "configs") == "config file is 'configs'; allowed: a TOML file (Is a directory)."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed = 1\n[train]\nepochs 3\n", "line 3, column 8"),
        ("[train\n", "line 1, column 7"),
        ("seed = 1\nseed = 2\n", "Cannot overwrite a value (at line 2"),
        ("[train]\nepochs = 1\n[train]\nsteps = 1\n", "Cannot declare ('train',) twice (at line 3"),
        ("seed = 01\n", "line 1"),
        (b"seed = 1\n# caf\xe9\n", "'utf-8' codec can't decode byte 0xe9 in position 14"),
        ("seed = " + "9" * 5000, "Exceeds the limit"),
        ("seed = " + "[" * 5000, "recursion"),
        (".".join(["a"] * 5000) + " = 1", "recursion"),
    ],
)
def test_what_is_no_toml_is_refused_with_its_place(file, text, found):
    message = refusal("--config", file(text))
    assert message.startswith("test.toml is not valid TOML: ")
    assert found in message


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[train]\nepoch = 3\n", "train.epoch", "train.epochs"),
        ("[train]\nwidth = 3\n", "train.width", "model.width"),
        ("epochs = 3\n", "epochs", "train.epochs"),
        ("sed = 3\n", "sed", "seed"),
        ("[trian]\nepochs = 3\n", "trian.epochs", "train.epochs"),
        ("[trian]\n", "trian", "train"),
        ("[compress]\nmax_rank = 3\n", "compress.max_rank", "compress.up.max_rank"),
        ("[compress.dwn]\nenergy = 1\n", "compress.dwn.energy", "compress.down.energy"),
        ("[compress.down]\nenrgy = 1\n", "compress.down.enrgy", "compress.down.energy"),
        ("[link.latency_ms]\nvalue = 1\n", "link.latency_ms.value", None),
        ("[train]\nqqq = 1\n", "train.qqq", None),
        ("config = 1\n", "config", None),
    ],
)
def test_an_unknown_key_of_the_file(file, text, key, nearest):
    message = refusal("--config", file(text))
    assert message.startswith(f"test.toml: key is {key!r}; allowed: ")
    assert message.endswith(f" Did you mean {nearest!r}?") if nearest else "Did you mean" not in message


def test_an_unknown_key_lists_its_neighbours(file):
    assert "allowed: model.name, model.width, model.cut, model.norm, model.bottleneck, model.second_cut." in refusal(
        "--config", file("model.x = 1\n")
    )
    top = "allowed: seed, run_dir, overwrite, role, predict, data, model, compress, link, remote, train"
    assert top + "." in refusal("--config", file("x = 1\n"))
    assert top + ", config, print_config." in refusal("--config", file(), "--x", "1")


@pytest.mark.parametrize("text", ["train = 3\n", "[[train]]\nepochs = 3\n"])
def test_a_section_must_be_a_table(file, text):
    assert refusal("--config", file(text)).startswith("test.toml: key is 'train'; allowed: train.epochs, ")


@pytest.mark.parametrize(
    ("words", "key", "nearest"),
    [
        (["--train.epoch", "3"], "train.epoch", "train.epochs"),
        (["--train.epoch=3"], "train.epoch", "train.epochs"),
        (["--train.epoc"], "train.epoc", "train.epochs"),
        (["--epochs", "3"], "epochs", "train.epochs"),
        (["--confg", "x.toml"], "confg", "config"),
        (["--train", "x.toml"], "train", None),
        (["--"], "", None),
    ],
)
def test_an_unknown_key_on_the_command_line(file, words, key, nearest):
    message = refusal("--config", file(), *words)
    assert message.startswith(f"command line: key is {key!r}; allowed: ")
    assert message.endswith(f" Did you mean {nearest!r}?") if nearest else "Did you mean" not in message


def test_a_word_that_is_no_option(file):
    expected = "; allowed: --config FILE and --section.key VALUE."
    assert refusal(file()) == "command line: word is 'test.toml'" + expected
    assert refusal("--config", file(), "-x", "1") == "command line: word is '-x'" + expected
    assert refusal("--config", file(), "--print_config", "true") == "command line: word is 'true'" + expected


def test_an_option_without_a_value(file):
    expected = "command line: --train.epochs is None; allowed: a value, as in --train.epochs VALUE."
    assert refusal("--config", file(), "--train.epochs") == expected
    assert refusal("--config", file(), "--train.epochs", "--seed", "1") == expected
    assert refusal("--config").startswith("command line: --config is None; allowed: a value")


@pytest.mark.parametrize(
    ("key", "given", "allowed"),
    [
        ("train.epochs", '"3"', "a whole number"),
        ("train.epochs", "3.0", "a whole number"),
        ("train.epochs", "true", "a whole number"),
        ("train.epochs", "[3]", "a whole number"),
        ("train.epochs", "{}", "a whole number"),
        ("train.steps", '"3"', "a whole number"),
        ("train.steps", "2020-01-01", "a whole number"),
        ("train.learning_rate", '"0.1"', "a finite number"),
        ("train.learning_rate", "true", "a finite number"),
        ("train.learning_rate", "nan", "a finite number"),
        ("link.up_mbps", "inf", "a finite number"),
        ("link.up_mbps", "1" + "0" * 400, "a finite number"),
        ("overwrite", "1", "true or false"),
        ("overwrite", '"true"', "true or false"),
        ("model.name", "3", "a text"),
        ("data.dir", "3", "a text"),
        ("train.schedule", '"cosin"', "'constant', 'cosine', 'linear'. Did you mean 'cosine'?"),
        ("train.dtype", "32", "'float32', 'bfloat16'"),
        ("compress.up.factor_bits", "5", "4, 8, 16"),
        ("compress.up.factor_bits", "true", "4, 8, 16"),
    ],
)
def test_a_wrong_type_in_the_file(file, key, given, allowed):
    message = refusal("--config", file(f"{key} = {given}"))
    assert message.startswith(f"test.toml: {key} is {tomllib.loads(f'x = {given}')['x']!r}; allowed: {allowed}")


@pytest.mark.parametrize(
    ("key", "word", "allowed"),
    [
        ("train.epochs", "ten", "a whole number"),
        ("train.epochs", "3.0", "a whole number"),
        ("train.epochs", "true", "a whole number"),
        ("train.epochs", "null", "a whole number"),
        ("train.epochs", "", "a whole number"),
        ("train.steps", "9" * 5000, "a whole number"),
        ("train.learning_rate", "1,5", "a finite number"),
        ("link.up_mbps", "inf", "a finite number"),
        ("train.learning_rate", "null", "a finite number"),
        ("train.learning_rate", "1" + "0" * 400, "a finite number"),
        ("overwrite", "maybe", "true or false"),
        ("overwrite", "1", "true or false"),
        ("train.optimizer", "adm", "'sgd', 'adam', 'adamw'. Did you mean 'adam'?"),
        ("compress.down.factor_bits", "5", "4, 8, 16"),
    ],
)
def test_a_wrong_type_on_the_command_line(file, key, word, allowed):
    message = refusal("--config", file(), f"--{key}", word)
    assert message.startswith(f"command line: {key} is {word!r}; allowed: {allowed}")


RANGES = [
    ("seed", -1, "a whole number in [0, 2**32)"),
    ("seed", 2**32, "a whole number in [0, 2**32)"),
    ("data.num_train", 0, "a number >= 1"),
    ("data.num_test", 0, "a number >= 1"),
    ("model.width", 0, "a number in [1, 65536]"),
    ("compress.up.max_rank", 0, "a number >= 1"),
    ("compress.down.max_rank", 0, "a number >= 1"),
    ("compress.up.energy", 0.0, "a number in (0, 1]"),
    ("compress.down.energy", 1.5, "a number in (0, 1]"),
    ("compress.up.iterations", 0, "a number in [1, 100]"),
    ("compress.up.iterations", 1_000_000_000, "a number in [1, 100]"),
    ("compress.up.feedback_decay", 0.0, "a number in (0, 1]"),
    ("compress.up.feedback_decay", 1.5, "a number in (0, 1]"),
    ("compress.down.ratio", 0.5, "a number >= 1"),
    ("link.up_mbps", 1e-300, "a number in [1e-6, 1e9]"),
    ("link.deadline_s", 1e300, "a number in (0, 1e9]"),
    ("train.learning_rate", 1e300, "a number in (0, 1e30]"),
    ("link.client_step_s", 1e300, "a number in [0, 1e9]"),
    ("link.up_mbps", 0.0, "a number in [1e-6, 1e9]"),
    ("link.down_mbps", -1.0, "a number in [1e-6, 1e9]"),
    ("link.latency_ms", -1.0, "a number in [0, 1e9]"),
    ("link.deadline_s", 0.0, "a number in (0, 1e9]"),
    ("link.client_step_s", -1.0, "a number in [0, 1e9]"),
    ("link.server_step_s", -1.0, "a number in [0, 1e9]"),
    ("link.initial_mbps", 0.0, "a number in [1e-6, 1e9]"),
    ("train.epochs", 0, "a number in [1, 2**31)"),
    ("train.steps", 0, "a number in [1, 2**31)"),
    ("train.batch_size", 0, "a number in [1, 2**31)"),
    ("train.learning_rate", 0.0, "a number in (0, 1e30]"),
    ("train.warmup", -0.5, "a number in [0, 1)"),
    ("train.warmup", 1.0, "a number in [0, 1)"),
    ("train.weight_decay", -0.5, "a number in [0, 1e9]"),
    ("train.log_every", 0, "a number >= 1"),
    ("train.eval_every", -1, "a number >= 0"),
    ("train.checkpoint_every", -1, "a number >= 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), RANGES)
def test_out_of_range(file, key, value, allowed):
    expected = f"{key} is {value!r}; allowed: {allowed}."
    assert refusal("--config", file(f"{key} = {value}")) == f"test.toml: {expected}"
    assert refusal("--config", file(), f"--{key}", str(value)) == f"command line: {expected}"


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_may_be_negative(file, key):
    assert refusal("--config", file(), f"--{key}=-1").startswith(f"command line: {key} is -1")


@pytest.mark.parametrize(
    "text",
    [
        "compress.up.energy = 1.0",
        "compress.up.energy = 1e-9",
        "compress.up.feedback_decay = 1.0",
        "compress.up.ratio = 1",
        "train.warmup = 0",
        "seed = 4294967295",
        "train.eval_every = 0",
    ],
)
def test_the_ends_of_ranges_are_allowed(file, text):
    load(file(text))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "train.epochs is 0; allowed: a number in [1, 2**31)."),
        ({"steps": 10**11}, "train.steps is 100000000000; allowed: a number in [1, 2**31)."),
        ({"batch_size": 64.5}, "train.batch_size is 64.5; allowed: a whole number."),
        ({"steps": True}, "train.steps is True; allowed: a whole number."),
        ({"epochs": None}, "train.epochs is None; allowed: a whole number."),
        ({"optimizer": "lion"}, "train.optimizer is 'lion'; allowed: 'sgd', 'adam', 'adamw'."),
        ({"dtype": "float16"}, "train.dtype is 'float16'; allowed: 'float32', 'bfloat16'."),
    ],
)
def test_a_config_built_in_python_is_held_to_types_and_choices(wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Config(train=TrainConfig(**wrong))


def test_a_run_dir_may_be_a_path():
    assert Config(run_dir=Path("runs") / "mine").run_dir == str(Path("runs") / "mine")


def test_a_config_built_in_python_is_held_to_the_ranges():
    with pytest.raises(InputError, match=re.escape("compress.up.factor_bits is 4.0; allowed: a value of type int.")):
        Config(compress=CompressConfig(up=DirectionConfig(factor_bits=4.0)))
    with pytest.raises(InputError, match=re.escape("compress.down.factor_bits is 5; allowed: 4, 8, 16.")):
        Config(compress=CompressConfig(down=DirectionConfig(factor_bits=5)))


@pytest.mark.parametrize(
    ("text", "name", "rival"),
    [
        ('trace = "a"\nup_trace = "b"', "up_trace is 'b'", "trace"),
        ('trace = "a"\ndown_trace = "b"', "down_trace is 'b'", "trace"),
        ('trace = "a"\nup_mbps = 2', "up_mbps is 2.0", "trace"),
        ('trace = "a"\ndown_mbps = 2', "down_mbps is 2.0", "trace"),
        ('up_trace = "a"\nup_mbps = 2', "up_mbps is 2.0", "up_trace"),
        ('down_trace = "a"\ndown_mbps = 2', "down_mbps is 2.0", "down_trace"),
    ],
)
def test_traces_and_constants_exclude_each_other(file, text, name, rival):
    assert refusal("--config", file(f"[link]\n{text}\n")) == (
        f"test.toml: link.{name}; allowed: nothing beside link.{rival}. "
        f"Leave one of the two out (on the command line: --link.{rival} null)."
    )


def test_a_trace_up_goes_with_a_constant_down(file):
    assert load(file('[link]\nup_trace = "a"\ndown_mbps = 2\n')).config.link.down_mbps == 2.0


def test_an_exclusion_between_file_and_command_line_is_the_command_lines(file):
    message = refusal("--config", file('link.trace = "a"'), "--link.up_mbps", "2")
    assert message.startswith("command line: link.up_mbps is 2.0; allowed: nothing beside link.trace.")


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize(("key", "word"), [("link.client_step_s", "3"), ("link.server_step_s", "1")])
def test_two_parties_compute_for_real(file, role, key, word):
    message = refusal("--config", file(), "--role", role, f"--{key}", word)
    assert message.startswith(f"command line: {key} is ")
    assert f"allowed: 0 with role {role!r}. Both parties compute for real" in message


@pytest.mark.parametrize("way", ["up", "down"])
def test_two_parties_cannot_calibrate(file, way):
    message = refusal("--config", file(), "--role", "client", f"--compress.{way}.view", "calibrate")
    assert message.startswith(f"command line: compress.{way}.view is 'calibrate'; allowed: 'auto' or a view's name")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "host:", ":50551", "host:port", "host:65536", "host:-1", "host:9٣", "::1", "dns:///host:1"]
)
def test_an_address_has_a_host_and_a_port(file, address):
    message = refusal("--config", file(), "--role", "client", "--remote.address", address)
    assert message.startswith(f"command line: remote.address is {address!r}; allowed: host:port")


@pytest.mark.parametrize("address", ["[::1]:50551", "gpu-1.example.org:1", "localhost:0"])
def test_forms_of_an_address(file, address):
    words = "--role", "client", "--remote.address", address
    assert config.load(["--config", file(), *words]).config.remote.address == address


def test_roles_are_known_by_name(file):
    assert "'local', 'server', 'client'" in refusal("--config", file(), "--role", "serve")


def test_fingerprint_leaves_out_where_and_who_and_nothing_else():
    base = config.fingerprint(Config())
    assert re.fullmatch("[0-9a-f]{64}", base)
    same = Config(run_dir="x", overwrite=True, data=DataConfig(download=True), train=TrainConfig(resume=True))
    assert config.fingerprint(same) == base
    assert config.fingerprint(config.from_toml(config.to_toml(Config()))) == base
    others = [
        Config(seed=1),
        Config(train=TrainConfig(steps=1)),
        Config(train=TrainConfig(log_every=1)),
        Config(compress=CompressConfig(up=DirectionConfig(max_rank=1))),
        Config(compress=CompressConfig(down=DirectionConfig(max_rank=1))),
        Config(link=LinkConfig(up_mbps=1.0)),
    ]
    assert len({base, *map(config.fingerprint, others)}) == 1 + len(others)


def test_fingerprint_is_the_same_for_an_int_and_a_float(file):
    as_int = config.fingerprint(load(file("[train]\nlearning_rate = 1\n")).config)
    assert as_int == config.fingerprint(Config(train=TrainConfig(learning_rate=1.0)))


def test_unused_keys_names_what_was_given_and_the_method_does_not_take(file):
    name = file('[compress.up]\nmethod = "identity"\nenergy = 0.5\nview = "auto"\nfeedback = "none"\n')
    explicit = load(name, "--compress.up.max_rank", "3", "--compress.down.energy", "0.5").explicit
    given = {f"compress.up.{key}" for key in ("energy", "feedback", "max_rank", "method", "view")}
    assert config.unused_keys(explicit, "up", []) == tuple(sorted(given))
    assert config.unused_keys(explicit, "up", ["method", "feedback", "max_rank", "view"]) == ("compress.up.energy",)
    assert config.unused_keys(explicit, "down", ["energy"]) == ()
    assert config.unused_keys(explicit, "down", []) == ("compress.down.energy",)
