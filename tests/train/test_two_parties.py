"""Server and client over gRPC with mutual TLS, on loopback: what a local run computes, whatever is killed meanwhile."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from nscjax import check, remote, wire
from nscjax.remote import certs, session
from tests.train.runs import ROOT, child_environment, free_address, lines, made_folder
from train import bandwidth, checkpoint, client, loop, main, party, server, u_client, u_server
from train import config as configs

pytestmark = pytest.mark.usefixtures("quick")

VARIANTS = {  # nsc_sl alone, with one cut and with two, is what the killed runs below have
    "nsc_rd": ("--compress.up.method", "nsc_rd", "--compress.down.method", "nsc_rd"),
    "feedback": ("--compress.up.feedback", "across_steps", "--compress.down.feedback", "per_sample"),
    "top_k": ("--compress.up.method", "top_k", "--compress.down.method", "top_k", "--data.augment", "true"),
    "u_shaped, nsc_rd with feedback": (
        "--model.second_cut",
        "hidden3",
        "--compress.up.method",
        "nsc_rd",
        "--compress.down.method",
        "nsc_rd",
        "--compress.second_down.method",
        "nsc_rd",
        "--compress.second_down.feedback",
        "across_steps",
        "--compress.second_up.method",
        "nsc_rd",
        "--compress.second_up.feedback",
        "per_sample",
    ),
    "uncompressed": ("--compress.up.method", "identity", "--compress.down.method", "identity"),
}
HASHES = ("client_params_sha256", "server_params_sha256", "params_sha256")
SAME = ("loss", "accuracy", "balanced_accuracy", "total_up_bytes", "total_down_bytes", "ratio", "steps", *HASHES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = made_folder(tmp_path_factory.mktemp("parties"))
    certs.make(path / "certs")
    return path


def argv(folder, name, address, *more):
    words = ("--remote.address", address, "--remote.certs", str(folder / "certs"), "--remote.patience_s", "60")
    return ["--config", str(folder / "small.toml"), "--run_dir", str(folder / name), *words, *more]


def config_of(*arguments):
    return configs.load(argv(*arguments)).config


def both(folder, name, *more):
    """Runs a server in a thread and a client here; returns their exit codes."""
    address, codes = free_address(), {}

    def play(role):
        codes[role] = main.main(argv(folder, f"{name}-{role}", address, "--role", role, *more))

    thread = threading.Thread(target=play, args=("server",))
    thread.start()
    play("client")
    thread.join(30)
    return codes


def summaries(folder, name):
    return [json.loads((folder / f"{name}{role}" / "summary.json").read_text()) for role in ("", "-client", "-server")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_parties_end_with_the_parameters_of_a_local_run(folder, variant):
    more = VARIANTS[variant]
    assert main.main(argv(folder, variant, "127.0.0.1:1", *more)) == 0
    assert both(folder, variant, *more) == {"client": 0, "server": 0}
    local, at_client, at_server = summaries(folder, variant)
    for name in SAME:
        assert local[name] == at_client[name], name
    if "--remote.eval_uncompressed" in more:
        assert at_client["accuracy_uncompressed"] == local["accuracy_uncompressed"]
    assert [at_server[name] for name in HASHES] == [local[name] for name in HASHES]
    one, other = lines(folder / variant, "train"), lines(folder / f"{variant}-client", "train")
    for here, there in zip(one, other, strict=True):
        # The client tells what arrives by a program of its own, which may round otherwise.
        for way in [name for name in ("up", "down", "second_up", "second_down") if f"{name}_distortion" in here]:
            assert here.pop(f"{way}_distortion") == pytest.approx(there.pop(f"{way}_distortion"), rel=1e-4, abs=1e-9)
        assert there.pop("link_seconds") >= here.pop("link_seconds") == 0
        assert here == there
    assert not (folder / f"{variant}-client" / "halves" / "server").exists()
    assert not (folder / f"{variant}-server" / "halves" / "client").exists()
    # The envelopes' share is told beside the frames'.
    sent = at_client["total_up_bytes"] + (at_client["eval_up_bytes"] if variant != "uncompressed" else 0)
    assert at_client["envelope_up_bytes"] > sent


def test_the_cut_left_alone_is_graded_where_that_was_asked_for(folder):
    more = ("--train.steps", "2", "--remote.eval_uncompressed", "true")
    assert main.main(argv(folder, "alone", "127.0.0.1:1", *more)) == 0
    both(folder, "alone", *more)
    local, at_client, _ = summaries(folder, "alone")
    assert at_client["accuracy_uncompressed"] == local["accuracy_uncompressed"]


def test_the_server_of_a_u_shaped_network_is_sent_no_label_and_no_score(folder, monkeypatch):
    asked = {}

    def ask(self, kind, fields, *more, **named):
        asked.setdefault(kind, set(fields))
        return original(self, kind, fields, *more, **named)

    original = session.Session.ask
    monkeypatch.setattr(session.Session, "ask", ask)
    more = ("--model.second_cut", "hidden2", "--train.steps", "2")
    assert both(folder, "labels-u", *more) == {"client": 0, "server": 0}
    assert not {"labels", "loss", "accuracy"}.intersection(*asked.values(), set())
    assert set(asked) == {"hello", "forward", "backward", "pass_on", "save", "goodbye", "close"}
    assert {line["loss"] for line in lines(folder / "labels-u-server", "train")} == {None}
    at_client, at_server = (
        json.loads((folder / f"labels-u-{role}" / "summary.json").read_text()) for role in ("client", "server")
    )
    assert at_client["accuracy"] is not None
    assert not {"loss", "accuracy", "balanced_accuracy", "accuracy_uncompressed"} & set(at_server)


def test_labels_cannot_be_the_servers_in_a_u_shaped_network(folder, capsys):
    words = ("--role", "server", "--model.second_cut", "hidden2", "--remote.labels", "server")
    assert main.main(argv(folder, "refused-u", free_address(), *words)) == 2
    assert "remote.labels is 'server'; allowed: 'client' with model.second_cut" in capsys.readouterr().err


def test_what_comes_out_of_turn_strays_and_changes_nothing(folder):
    """A gradient without its activations, a batch of an evaluation that has not begun; both from a known client."""
    more = ("--model.second_cut", "hidden2")
    config = config_of(folder, "turn-client", "127.0.0.1:1", "--role", "client", *more)
    desk = u_server.UServer(config_of(folder, "turn-server", "127.0.0.1:1", "--role", "server", *more))
    desk.serve("client", "run", "hello", client.hello(config, loop.data_to_train_on(config), []))
    budgets = {"up_budget": 100, "down_budget": 100}
    for kind, fields in (
        ("backward", {"step": 0, "frame": b"", **budgets}),
        ("pass_on", {"step": 0, "batch": 1, "frame": b"", "smashed": b""}),
    ):
        with pytest.raises(remote.StrayedError):
            desk.serve("client", "run", kind, fields)
    forward = {"step": 0, "frame": b"no frame", "ids": b"", "up_mbps": 1.0, "down_mbps": 1.0, **budgets}
    with pytest.raises(wire.WireError):
        desk.serve("client", "run", "forward", forward)
    with pytest.raises(remote.StrayedError, match="forward"):
        desk.serve("client", "run", "backward", {"step": 0, "frame": b"", **budgets})
    desk.close(False)


def test_the_requests_of_another_kind_of_network_are_refused(folder):
    words = ("--role", "server", "--model.second_cut", "hidden2")
    desk = u_server.UServer(config_of(folder, "kind-u", free_address(), *words))
    with pytest.raises(remote.EnvelopeError, match="request is 'step'; known: hello, save, goodbye, close, forward"):
        desk.serve("client", "run", "step", {})


def test_what_differs_between_the_configs_is_named(folder):
    address = free_address()
    own = config_of(folder, "differs-server", address, "--role", "server")
    refused = []
    door = server.open_door(own, remote.Desk(server.Server(own).serve, on_refused=refused.append))
    other = ("--role", "client", "--train.learning_rate", "0.5", "--compress.up.max_rank", "3")
    with pytest.raises(check.InputError) as caught:
        client.run(config_of(folder, "differs-client", address, *other))
    door.close()
    (at_server,) = refused
    for told in (str(caught.value), at_server):
        assert "compress.up.max_rank (3 at the client, 6 at the server)" in told
        assert "train.learning_rate (0.5 at the client, 0.05 at the server)" in told
    assert not (folder / "differs-client").exists()


def test_a_server_that_never_comes_is_one_clear_error(folder):
    words = ("--role", "client", "--remote.patience_s", "0.3")
    with pytest.raises(check.InputError, match=r"remote.address: server at .*Start the server"):
        client.run(config_of(folder, "nobody-client", free_address(), *words))
    assert not (folder / "nobody-client").exists()


KILLED_HALFWAY = """
import os, sys
from train import main, u_server
forward = u_server.UServer._forward
def forward_and_die(self, **fields):
    answer = forward(self, **fields)
    if self._totals.steps + 1 == int(sys.argv[1]):
        os._exit(9)
    return answer
u_server.UServer._forward = forward_and_die
sys.exit(main.main(sys.argv[2:]))
"""
KILLED = """
import os, sys
from train import journal, main
add = journal.Totals.add
def add_and_die(self, metrics):
    add(self, metrics)
    if self.steps == int(sys.argv[1]):
        os._exit(9)
journal.Totals.add = add_and_die
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "kind", "killed", "more"), [
    ("killed", client.Client, KILLED, ()),
    ("killed-u", u_client.UClient, KILLED_HALFWAY, ("--model.second_cut", "hidden2")),
])  # fmt: skip
def test_a_run_goes_on_after_its_server_was_killed_and_its_client_too(folder, monkeypatch, name, kind, killed, more):
    """The server dies between applying step 7, or half of it, and answering; the client is ended at step 9."""
    assert main.main(argv(folder, name, "127.0.0.1:1", *more)) == 0
    address = free_address()
    words = argv(folder, f"{name}-server", address, "--role", "server", "--train.resume", "true", *more)

    def start(*code):
        return subprocess.Popen([sys.executable, *code, *words], cwd=ROOT, env=child_environment())

    first = start("-c", killed, "7")
    second: list[subprocess.Popen] = []

    def start_anew():
        assert first.wait(120) == 9
        second.append(start("-m", "train.main"))

    watcher = threading.Thread(target=start_anew)
    watcher.start()

    class Ended(Exception):
        pass

    advance = kind.advance

    def advance_and_end(self, state, step):
        if step == 9:
            raise Ended
        return advance(self, state, step)

    chosen = config_of(folder, f"{name}-client", address, "--role", "client", *more)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "advance", advance_and_end)
        with pytest.raises(Ended):
            client.run(chosen, kind)
    watcher.join()
    kept = checkpoint.read_counts(folder / f"{name}-client" / "checkpoints")["totals"]
    assert client.run(configs.resumed(chosen), kind) == 0
    assert second[0].wait(60) == 0
    local, at_client, at_server = summaries(folder, name)
    for field in SAME:
        assert local[field] == at_client[field], field
    assert [at_server[field] for field in HASHES] == [local[field] for field in HASHES]
    for way in ("up", "down"):  # what was sent before the client was started anew counts, up to its checkpoint
        before = kept[f"envelope_{way}_bytes"]
        assert 0 < before < at_client[f"envelope_{way}_bytes"]
        assert at_client[f"envelope_{way}_bytes"] > before + at_client[f"total_{way}_bytes"] - kept[f"{way}_bytes"]
    steps = [line["step"] for line in lines(folder / f"{name}-client", "train")]
    assert steps == list(range(1, 13))
    assert [line["step"] for line in lines(folder / f"{name}-server", "train")] == steps


def test_a_server_that_is_asked_to_end_has_its_client_save_as_well(folder, monkeypatch):
    """Both go on where the server ended, and not at the checkpoint before."""
    address, made = free_address(), []
    words = argv(folder, "ended-server", address, "--role", "server", "--train.resume", "true")
    servers: list[subprocess.Popen] = []

    def start():
        servers.append(
            subprocess.Popen([sys.executable, "-m", "train.main", *words], cwd=ROOT, env=child_environment())
        )

    start()
    advance = client.Client.advance

    def advance_and_end(self, state, step):
        made.append(step)
        if step == 5:
            servers[0].send_signal(signal.SIGINT)
            threading.Thread(target=lambda: servers[0].wait(60) == 130 and start()).start()
        if step >= 5 and len(servers) == 1:
            time.sleep(0.5)  # the run must not be over before the signal is seen
        return advance(self, state, step)

    monkeypatch.setattr(client.Client, "advance", advance_and_end)
    assert client.run(config_of(folder, "ended-client", address, "--role", "client")) == 0
    assert servers[1].wait(60) == 0
    # The one that the server did not answer is asked again.
    assert sorted(set(made)) == list(range(12))
    assert len(made) <= 13
    assert [line["step"] for line in lines(folder / "ended-client", "train")] == list(range(1, 13))


def test_budgets_follow_the_link_that_the_client_measures(folder):
    """Shaped to what carries less in time than a whole tensor: every frame is one that arrives."""
    # A deadline of which a busy machine's own latency is a small part.
    rates, deadline_s = {"up": 0.025, "down": 0.02}, 0.2
    words = ["--link.deadline_s", str(deadline_s)]
    words += [word for way, rate in rates.items() for word in (f"--link.{way}_mbps", str(rate))]
    assert both(folder, "shaped", *words) == {"client": 0, "server": 0}
    found, at_server = (lines(folder / f"shaped-{role}", "train") for role in ("client", "server"))
    for way, rate in rates.items():
        assert at_server[-1][f"{way}_mbit_per_s"] == pytest.approx(rate, rel=0.2)
        for line, other in zip(found, at_server, strict=True):
            assert line[f"{way}_bytes"] <= line[f"{way}_budget_bytes"] == other[f"{way}_budget_bytes"]
            assert line[f"{way}_bytes"] < rate * deadline_s * 125_000
        assert found[-1][f"{way}_bytes"] > 0.2 * rate * deadline_s * 125_000
    assert found[-1]["link_seconds"] > sum(found[-1][f"{way}_bytes"] / rate / 125_000 for way, rate in rates.items())
    assert 0 < at_server[-1]["waited_share"] < 1


def test_a_message_without_room_empties_those_after_it_in_a_u_shaped_network(folder, monkeypatch):
    ways = ("up", "second_down", "second_up", "down")  # in the order in which they cross
    measured, exchanges = bandwidth.Bandwidth.budgets, itertools.count()

    def budgets(self, caps, kind):
        step, half = divmod(next(exchanges), 2)
        found = list(measured(self, caps, kind))
        if step // 2 == half:  # in the first four steps one message each has no room
            found[step % 2] = 0
        return tuple(found)

    monkeypatch.setattr(bandwidth.Bandwidth, "budgets", budgets)
    assert both(folder, "no_room", "--model.second_cut", "hidden2", "--train.steps", "6") == {"client": 0, "server": 0}
    found, at_server = (lines(folder / f"no_room-{role}", "train") for role in ("client", "server"))
    for step, (line, other) in enumerate(zip(found, at_server, strict=True)):
        assert [line[f"{way}_rank"] == 0 for way in ways] == [place >= step for place in range(4)]
        assert [line[f"{way}_bytes"] for way in ways] == [other[f"{way}_bytes"] for way in ways]
    assert [found[-1][f"{way}_skipped"] for way in ("up", "down")] == [1 + 3, 2 + 4]


@pytest.mark.parametrize("budget", [0, 10])
def test_an_empty_message_is_a_header_however_small_its_budget(folder, budget):
    config = config_of(folder, "header", "127.0.0.1:1", "--role", "client")
    dataset = loop.data_to_train_on(config)
    share = party.share(config, dataset, "client", 12)
    asker = client.Client(config, dataset, loop.calendar_of(config, dataset), share, None, None)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), share.layouts["down"])
    answer = {"broken": -1, "frame": wire.encode(empty)}
    assert len(answer["frame"]) > budget
    assert asker._reply(answer, "down", budget).rank == 0
    full = dataclasses.replace(empty, rank=np.ones_like(empty.rank))
    with pytest.raises(remote.EnvelopeError, match=f"allowed: {budget}"):
        asker._reply({"broken": -1, "frame": wire.encode(full)}, "down", budget)


@pytest.mark.parametrize(("up", "down", "needed"), [("aq_sgd", "top_k", True), ("top_k", "aq_sgd", False)])
def test_ids_cross_where_a_method_looks_at_them(up, down, needed):
    both_ways = (configs.DirectionConfig(method=method) for method in (up, down))
    assert party.needs_ids(configs.Config(compress=configs.CompressConfig(*both_ways))) == needed


def test_what_comes_next_is_begun_before_what_is_there_is_sent():
    begun = []

    def items():
        for item in range(3):
            begun.append(item)
            yield item

    seen = [(item, list(begun)) for item in client.one_ahead(items())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]


def test_labels_of_the_server_alone(folder):
    """The client's are all wrong, and never leave it; the parameters are those of a run in which it has the labels."""
    with np.load(folder / "made.npz") as file:
        arrays = dict(file)
    np.savez(folder / "labels.npz", y_train=arrays["y_train"], y_test=arrays["y_test"])
    blind = arrays | {name: np.arange(len(arrays[name])) % 3 for name in ("y_train", "y_test")}
    np.savez(folder / "blind.npz", **blind)
    vertical = "--remote.labels", "server", "--remote.labels_file", str(folder / "labels.npz")
    assert main.main(argv(folder, "horizontal", "127.0.0.1:1")) == 0
    codes = both(folder, "horizontal", *vertical, "--data.dir", str(folder / "blind.npz"))
    assert codes == {"client": 0, "server": 0}
    local, at_client, _ = summaries(folder, "horizontal")
    for name in SAME:
        assert local[name] == at_client[name], name


def test_parties_that_disagree_on_the_labels_are_told(folder):
    address = free_address()
    waiting = threading.Thread(
        target=server.run, args=(config_of(folder, "told-server", address, "--role", "server"),), daemon=True
    )
    waiting.start()
    with pytest.raises(check.InputError, match=r"remote.labels is 'server' at the client, 'client' at the server"):
        client.run(config_of(folder, "told-client", address, "--role", "client", "--remote.labels", "server"))


def test_a_server_without_its_labels_says_so(folder):
    config = config_of(folder, "none-server", free_address(), "--role", "server", "--remote.labels", "server")
    with pytest.raises(check.InputError, match=r"remote\.labels_file"):
        server.run(config)
    lacking = dataclasses.replace(config.remote, labels_file=str(folder / "trace.csv"))
    with pytest.raises(check.InputError, match=r"trace.csv"):
        server.run(dataclasses.replace(config, remote=lacking))


@pytest.mark.parametrize("lost", ["answer", "client's files"])
def test_a_run_whose_goodbye_was_not_heard_is_finished_later(folder, lost):
    """The server has its summary, and the client has nothing yet, or did not get to writing it all."""
    name = f"unheard-{lost[:6]}"
    assert both(folder, name) == {"client": 0, "server": 0}
    digest = json.loads((folder / f"{name}-client" / "summary.json").read_text())["params_sha256"]
    (folder / f"{name}-server" / "closed").unlink()
    for file in ("report.html", "summary.json"):
        (folder / f"{name}-client" / file).unlink()
    if lost == "answer":
        (folder / f"{name}-server" / "summary.json").unlink()
    assert both(folder, name, "--train.resume", "true") == {"client": 0, "server": 0}
    for role in ("client", "server"):
        assert json.loads((folder / f"{name}-{role}" / "summary.json").read_text())["params_sha256"] == digest
    assert (folder / f"{name}-server" / "closed").exists()


def test_a_finished_server_has_nothing_to_do(folder, capsys):
    assert both(folder, "finished") == {"client": 0, "server": 0}
    config = config_of(folder, "finished-server", free_address(), "--role", "server", "--train.resume", "true")
    assert server.run(config) == 0
    assert "nothing to do" in capsys.readouterr().out
