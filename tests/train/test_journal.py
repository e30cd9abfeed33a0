import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.split import Message
from train import journal
from train.state import TENSORS, Metrics
from train.terminal import Terminal

# The fields of a line and of the summary are a contract: programs read them.
TRAIN_FIELDS = [
    "kind", "step", "epoch", "loss", "accuracy", "up_bytes", "down_bytes", "up_rank", "down_rank", "up_distortion",
    "down_distortion", "up_budget_bytes", "down_budget_bytes", "up_skipped", "down_skipped", "link_seconds",
]  # fmt: skip
SCORES = {"loss": 0.5, "accuracy": 0.75, "balanced_accuracy": 0.7, "accuracy_uncompressed": 0.8, "eval_up_bytes": 77}
EVAL_FIELDS = ["kind", "step", "epoch", *SCORES, "total_up_bytes", "total_down_bytes", "total_link_seconds"]
SUMMARY_FIELDS = [
    *EVAL_FIELDS[1:], "raw_up_bytes", "raw_down_bytes", "ratio", "up_skipped", "down_skipped", "steps", "seed",
    "wall_seconds", "client_params_sha256", "server_params_sha256", "params_sha256",
]  # fmt: skip
CALENDAR = journal.Calendar(num_steps=10, steps_per_epoch=4, log_every=3, eval_every=0, checkpoint_every=5)


def metrics(up_bytes=100, down_bytes=50, rank=3, is_skipped=False, link_seconds=0.25, broken=-1):
    def message(num_bytes):
        return Message(jnp.int32(num_bytes), None if rank is None else jnp.int32(rank), jnp.float32(0.1), is_skipped)

    return Metrics(
        loss=jnp.float32(1.5), accuracy=jnp.float32(0.25), up=message(up_bytes), down=message(down_bytes),
        up_budget_bytes=jnp.int32(120), down_budget_bytes=jnp.int32(60), link_seconds=jnp.float32(link_seconds),
        broken=jnp.int32(broken),
    )  # fmt: skip


@pytest.fixture
def open_journal(tmp_path):
    opened = []

    def open_one(counts=None, calendar=CALENDAR):
        opened.append(journal.Journal(tmp_path / "metrics.jsonl", Terminal(10, 0), calendar, (1000,), counts))
        return opened[-1]

    yield open_one
    for one in opened:
        one.__exit__()


def written(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_totals_are_exact_beyond_what_32_bits_hold():
    totals = journal.Totals()
    for _ in range(3):
        totals.add(metrics(up_bytes=2**31 - 1, down_bytes=2**31 - 2))
    assert (totals.steps, totals.up_bytes, totals.down_bytes) == (3, 3 * (2**31 - 1), 3 * (2**31 - 2))
    assert totals.link_seconds == 0.75


def test_skipped_messages_are_counted_by_direction():
    totals = journal.Totals()
    message = metrics()
    totals.add(message)
    totals.add(message._replace(down=message.down._replace(is_skipped=True)))
    totals.add(metrics(is_skipped=True))
    assert (totals.up_skipped, totals.down_skipped, totals.steps) == (1, 2, 3)


def test_ratio_is_raw_over_sent():
    totals = journal.Totals()
    assert totals.ratio((1000,)) == 0
    totals.add(metrics(up_bytes=30, down_bytes=20))
    assert totals.ratio((1000,)) == 2000 / 50


@pytest.mark.parametrize(("step", "epoch", "log", "evaluate", "save"), [
    (1, 1, False, False, False), (3, 1, True, False, False), (4, 1, False, True, False), (5, 2, False, False, True),
    (8, 2, False, True, False), (9, 3, True, False, False), (10, 3, True, True, True),
])  # fmt: skip
def test_the_calendar_counts_from_one_and_ends_with_everything(step, epoch, log, evaluate, save):
    assert CALENDAR.epoch(step) == epoch
    due = CALENDAR.is_log_due(step), CALENDAR.is_eval_due(step), CALENDAR.is_checkpoint_due(step)
    assert due == (log, evaluate, save)


def test_a_line_of_training_has_the_fields_of_the_contract(open_journal, tmp_path):
    log = open_journal()
    for number in range(1, 5):
        log.step(metrics(up_bytes=number, is_skipped=number == 2))
    (line,) = written(tmp_path)
    assert list(line) == TRAIN_FIELDS
    expected = {
        "kind": "train", "step": 3, "epoch": 1, "loss": 1.5, "accuracy": 0.25, "up_bytes": 3, "down_bytes": 50,
        "up_rank": 3, "up_budget_bytes": 120, "down_budget_bytes": 60, "up_skipped": 1, "down_skipped": 1,
        "link_seconds": 0.25,
    }  # fmt: skip
    assert {name: line[name] for name in expected} == expected
    assert line["up_distortion"] == pytest.approx(0.1)


def test_a_method_without_rank_has_none(open_journal, tmp_path):
    log = open_journal(calendar=CALENDAR._replace(log_every=1))
    log.step(metrics(rank=None))
    assert [line["up_rank"] for line in written(tmp_path)] == [None]


def test_an_evaluation_has_the_totals_of_training(open_journal, tmp_path):
    log = open_journal()
    log.step(metrics())
    log.step(metrics())
    log.evaluated(SCORES)
    (line,) = written(tmp_path)
    assert list(line) == EVAL_FIELDS
    totals = {"step": 2, "epoch": 1, "total_up_bytes": 200, "total_down_bytes": 100, "total_link_seconds": 0.5}
    assert line == {"kind": "eval", **SCORES, **totals}


def test_the_summary_has_the_fields_of_the_contract(open_journal):
    log = open_journal()
    log.step(metrics(up_bytes=50, down_bytes=25, is_skipped=True))
    log.step(metrics(up_bytes=50, down_bytes=25))
    log.evaluated(SCORES)
    found = log.summary(7, "a", "b")
    assert sorted(found) == sorted(SUMMARY_FIELDS)
    expected = {**SCORES, "raw_up_bytes": 1000, "raw_down_bytes": 1000, "ratio": 2000 / 150, "seed": 7, "steps": 2}
    assert {name: found[name] for name in expected} == expected
    assert (found["up_skipped"], found["down_skipped"]) == (1, 1)
    assert found["wall_seconds"] >= 0
    json.dumps(found, allow_nan=False)


def test_hashes_are_of_the_bytes_in_tree_order():
    client = {"b": {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}, "a": jnp.asarray([1, 2], jnp.bfloat16)}
    # In a dict the tree's order is that of the names.
    halves = np.asarray([1, 2], dtype=client["a"].dtype).tobytes()
    expected = hashlib.sha256(halves + np.arange(6, dtype="<f4").tobytes()).hexdigest()
    assert journal.params_sha256(client) == expected
    assert journal.params_sha256(()) == hashlib.sha256().hexdigest()
    found = journal.digests(*map(journal.params_sha256, (client, ())))
    both = hashlib.sha256((expected + hashlib.sha256().hexdigest()).encode()).hexdigest()
    digests = [found[f"{name}params_sha256"] for name in ("client_", "server_", "")]
    assert digests == [expected, hashlib.sha256().hexdigest(), both]


def test_hashes_do_not_depend_on_where_the_array_lies():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert journal.params_sha256([array.T]) == journal.params_sha256([jnp.asarray(array.T)])
    assert journal.params_sha256([array]) != journal.params_sha256([array.T])


@pytest.mark.parametrize("broken", range(len(TENSORS)))
def test_a_broken_step_names_its_tensor_and_does_not_count(open_journal, tmp_path, broken):
    log = open_journal(calendar=CALENDAR._replace(log_every=1))
    log.step(metrics())
    with pytest.raises(journal.Broken, match=TENSORS[broken]):
        log.step(metrics(broken=broken))
    assert log.totals.steps == 1
    assert len(written(tmp_path)) == 1


def test_a_journal_goes_on_from_its_counts(open_journal, tmp_path):
    log = open_journal(calendar=CALENDAR._replace(log_every=1))
    log.step(metrics())
    log.evaluated(SCORES)
    counts = json.loads(json.dumps(log.counts()))  # as a checkpoint holds them
    before = written(tmp_path)
    log.step(metrics(up_bytes=9999))
    log.evaluated({**SCORES, "loss": 9.0})
    again = open_journal(counts, CALENDAR._replace(log_every=1))
    assert written(tmp_path) == before
    assert again.last_eval == before[-1]
    assert (again.totals.steps, again.totals.up_bytes) == (1, 100)
    assert again.totals.wall_seconds == counts["totals"]["wall_seconds"]
    again.step(metrics(up_bytes=200))
    assert again.totals.up_bytes == 300
    assert [line["step"] for line in written(tmp_path)] == [1, 1, 2]


def test_time_spent_before_counts_too(open_journal):
    counts = open_journal().counts()
    counts["totals"]["wall_seconds"] = 1000.0
    assert open_journal(counts).counts()["totals"]["wall_seconds"] >= 1000.0


def test_metrics_may_be_on_the_device(open_journal):
    log = open_journal()
    log.step(jax.device_put(metrics(is_skipped=jnp.asarray(True))))
    assert (log.totals.up_bytes, log.totals.up_skipped) == (100, 1)


def test_skipped_messages_save_no_bytes():
    totals = journal.Totals(steps=10, up_bytes=800, down_bytes=200, up_skipped=2, down_skipped=5)
    assert totals.raw_bytes((1000,)) == (8000, 5000)
    assert totals.ratio((1000,)) == 13.0
    # Of a second cut each message counts for itself.
    of_two = dataclasses.replace(totals, up_skipped=totals.up_skipped + 3, second_up_skipped=3)
    assert of_two.raw_bytes((1000, 100)) == (8000 + 100 * (totals.steps - 3), 5000 + 100 * totals.steps)


def test_an_evaluation_that_is_not_finite_stops_the_run(open_journal, tmp_path):
    log = open_journal()
    log.step(metrics())
    with pytest.raises(journal.Broken, match="loss of the evaluation after step 1"):
        log.evaluated({**SCORES, "loss": float("nan")})
    assert written(tmp_path) == []
