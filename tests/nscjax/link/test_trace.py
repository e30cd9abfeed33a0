import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax import link
from nscjax.check import InputError
from nscjax.link import trace as trace_module


def write(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def assert_same(a, b):
    np.testing.assert_array_equal(a.seconds, b.seconds)
    np.testing.assert_array_equal(a.mbit_per_s, b.mbit_per_s)


def test_read_trace_holds_each_rate_until_the_next_row(tmp_path):
    trace = link.read_trace(write(tmp_path, "time_s,mbit_per_s\n0,1.5\n0.5,0\n2.5,3\n5.0,4\n"))
    np.testing.assert_array_equal(trace.seconds, np.float32([0.5, 2.0, 2.5, 2.0]))
    np.testing.assert_array_equal(trace.mbit_per_s, np.float32([1.5, 0, 3, 4]))
    assert trace.seconds.dtype == trace.mbit_per_s.dtype == jnp.float32


def test_read_trace_of_one_row_is_constant(tmp_path):
    assert_same(link.read_trace(write(tmp_path, "time_s,mbit_per_s\n0,2\n")), link.constant(2.0))


def test_read_trace_takes_the_line_ends_and_mark_of_spreadsheets(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbftime_s,mbit_per_s\r\n0,1\r\n1,2\r\n\r\n")
    np.testing.assert_array_equal(link.read_trace(path).mbit_per_s, [1, 2])


HEADER = "time_s,mbit_per_s\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "line 1: header is ''; allowed: 'time_s,mbit_per_s'."),
        ("time,rate\n0,1\n", "line 1: header is 'time,rate'; allowed: 'time_s,mbit_per_s'."),
        (HEADER, "number of rows is 0; allowed: at least one row below the header."),
        (HEADER + "0,1\n1,fast\n", "line 3: mbit_per_s is 'fast'; allowed: a number from 0 to 1e+09."),
        (HEADER + "0,1\n1,\n", "line 3: mbit_per_s is '';"),
        (HEADER + "0,1\n1,nan\n", "line 3: mbit_per_s is 'nan';"),
        (HEADER + "0,1\n1,inf\n", "line 3: mbit_per_s is 'inf';"),
        (HEADER + "0,1\n1,-2\n", "line 3: mbit_per_s is '-2';"),
        (HEADER + "0,1\n1,1e30\n", "line 3: mbit_per_s is '1e30';"),
        (HEADER + "0,1\nnan,1\n", "line 3: time_s is 'nan';"),
        (HEADER + "0,1\n\n1e300,1\n", "line 4: time_s is '1e300'; allowed: a number from 0 to 1e+09."),
        (HEADER + "0,1\n1,1\n1,2\n", "line 4: time_s is '1'; allowed: a time after the row before it (1)."),
        (HEADER + "0.5,1\n", "line 2: first time_s is '0.5'; allowed: 0. Subtract it from all times."),
        (HEADER + "0,1,2\n", "line 2 is '0,1,2'; allowed: two numbers, time_s and mbit_per_s."),
        (HEADER + "0\n", "line 2 is '0';"),
        (HEADER + "0,0\n1,0\n", "all rates together carry is '0 Mbit'; allowed: at least one bit."),
        (HEADER + "0,1e-50\n1,0\n", "all rates together carry is '0 Mbit';"),
        (HEADER + "0," + "1" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_read_trace_names_what_is_wrong_and_where(tmp_path, text, found):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        link.read_trace(path)
    assert str(caught.value).startswith(str(path))
    assert found in str(caught.value)


def test_read_trace_refuses_what_is_no_text_file(tmp_path):
    with pytest.raises(InputError, match=r"trace is '.*absent.csv'; allowed: an existing CSV file"):
        link.read_trace(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="allowed: an existing CSV file"):
        link.read_trace(tmp_path)
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"binary.csv is .*allowed: a readable CSV file of plain text"):
        link.read_trace(path)


def test_read_trace_caps_file_and_rows(tmp_path, monkeypatch):
    path = write(tmp_path, HEADER + "0,1\n1,1\n2,1\n")
    monkeypatch.setattr(trace_module, "MAX_ROWS", 2)
    with pytest.raises(InputError, match=r"line 4: row number is 3; allowed: at most 2\. Shorten the trace\."):
        link.read_trace(path)
    monkeypatch.setattr(trace_module, "MAX_FILE_BYTES", 20)
    with pytest.raises(InputError, match=r"size in bytes is 30; allowed: at most 20\. Shorten the trace\."):
        link.read_trace(path)


rates = st.floats(0, 2**20, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(2**-10, 2**13, width=32), rates), min_size=1, max_size=9))
def test_write_then_read_is_exact(tmp_path_factory, rows):
    steps, values = np.float32(rows).T
    steps[-1] = np.median(steps[:-1]) if len(steps) > 1 else 1
    values[0] = 5
    trace = link.Trace(jnp.asarray(steps), jnp.asarray(values))
    path = tmp_path_factory.getbasetemp() / "written.csv"
    link.write_trace(trace, path)
    read = link.read_trace(path)
    np.testing.assert_array_equal(read.mbit_per_s, trace.mbit_per_s)
    np.testing.assert_array_equal(read.seconds[:-1], trace.seconds[:-1])
    assert float(read.seconds[-1]) == pytest.approx(float(steps[-1]), rel=1e-6)


def test_write_trace_writes_short_decimals(tmp_path):
    path = tmp_path / "trace.csv"
    link.write_trace(link.Trace(jnp.full(4, 0.1), jnp.float32([1.7, 0, 2, 3])), path)
    assert path.read_text() == "time_s,mbit_per_s\n0,1.7\n0.1,0.0\n0.2,2.0\n0.3,3.0\n"


def test_write_trace_names_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"trace file is .*allowed: a path that can be written"):
        link.write_trace(link.constant(1.0), tmp_path / "absent" / "trace.csv")


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e30])
def test_constant_refuses_what_is_no_rate(rate):
    with pytest.raises(InputError, match=r"mbit_per_s is .*; allowed: a number in \(0, 1e\+09\]"):
        link.constant(rate)


def test_load_trace_reads_a_path_or_generates(tmp_path):
    path = tmp_path / "trace.csv"
    link.write_trace(link.lte_like(3), path)
    assert_same(link.load_trace("lte_like:3"), link.lte_like(3))
    assert_same(link.load_trace(str(path)), link.lte_like(3))


@pytest.mark.parametrize("name", ["lte_like:", "lte_like:-1", "lte_like:x", "lte_like:1.5"])
def test_load_trace_refuses_a_bad_seed(name):
    with pytest.raises(InputError, match=f"trace is '{name}'; allowed: .*'lte_like:SEED' with a whole number in"):
        link.load_trace(name)


@pytest.mark.parametrize("seed", range(8))
def test_lte_like_has_the_statistics_it_aims_at(seed):
    trace = link.lte_like(seed)
    rates = np.asarray(trace.mbit_per_s)
    assert len(rates) == 6000
    np.testing.assert_array_equal(trace.seconds, np.float32(0.1))
    assert 2.0 < rates.mean() < 4.5
    assert 0.05 < (rates == 0).mean() < 0.15
    assert 0.6 < rates.std() / rates.mean() < 1.1
    # Rates a step apart are alike, rates a minute apart are not.
    assert np.corrcoef(rates[:-1], rates[1:])[0, 1] > 0.5
    assert abs(np.corrcoef(rates[:-600], rates[600:])[0, 1]) < 0.3


def test_lte_like_repeats_by_seed_and_differs_between_seeds():
    assert_same(link.lte_like(1), link.lte_like(1))
    assert not np.array_equal(link.lte_like(1).mbit_per_s, link.lte_like(2).mbit_per_s)
    assert len(link.lte_like(1, duration_s=30.0).seconds) == 300


def test_lte_like_refuses_what_is_out_of_range():
    with pytest.raises(InputError, match="seed is -1; allowed: a whole number >= 0"):
        link.lte_like(-1)
    with pytest.raises(InputError, match=r"duration_s is 0.0; allowed: a number from 0.1 to 100000"):
        link.lte_like(0, duration_s=0.0)
