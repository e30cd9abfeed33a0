import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_pages_quote_the_committed_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + "run `python benchmarks/tables.py`"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path):
    result = json.loads(path.read_text())
    assert set(result) == {"command", "commit", "date", "machine", "versions", "seeds", "rows"}
    assert result["command"].startswith(("python benchmarks/", "python train/main.py"))
    assert result["rows"]
