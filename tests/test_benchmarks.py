"""The benchmarks' own arithmetic, and one small case of each that runs here.

In processes of their own, from the checkout: they are no part of the package.
"""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PROGRAMS = {
    "arithmetic": """
import math
from benchmarks.harness import Timing, fitted_exponent, take_turns, Program
timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
assert (timing.low, timing.median, timing.high, timing.repeats) == (2, 3, 4, 5)
assert math.isclose(fitted_exponent([1, 10, 100], [2.0, 200.0, 20000.0]), 2)
calls = []
programs = {x: Program(lambda x=x: calls.append(x), 0, 0, None) for x in "ab"}
timings = take_turns(programs, seconds=0, repeats=3)
assert calls == list("ab" * 4), calls  # a warm-up, then turns
assert {t.repeats for t in timings.values()} == {3}
""",
    "rows are written as they come": """
import pathlib, tempfile
from benchmarks.harness import read_rows, write_rows
def rows():
    yield {"x": 1}
    assert [row["x"] for row in read_rows(path)] == [1]
    yield {"x": 2}
path = pathlib.Path(tempfile.mkdtemp()) / "sub" / "rows.jsonl"
assert read_rows(path) == []
write_rows(path, rows())
assert [row["x"] for row in read_rows(path)] == [1, 2]
assert {"device", "versions", "commit", "date"} <= set(read_rows(path)[0])
write_rows(path, [{"x": 3}])
assert [row["x"] for row in read_rows(path)] == [3]
""",
    "without an accelerator": """
from benchmarks import gpu
assert gpu.main() == 0
""",
    "curvature": """
from benchmarks import curvature, report
ceiling = {"flops_per_second": 1e11, "bytes_per_second": 1e10}
row = curvature.measure("gaussian", 32, 8, ceiling, 0.0)
assert row["seconds"]["update"].repeats >= 3
assert set(row["product_over_gradient"]) == {"gauss_newton", "hessian"}
assert list(curvature.cases(0)) == []
sizes = {(kind, rows) for kind, rows, _ in curvature.cases(float("inf"))}
assert sizes == {(k, 4**n) for k in ("categorical", "gaussian") for n in range(5, 11)}
""",
    "scaling": """
from benchmarks import scaling
row = scaling.measure("update", (1, 2), scaling.seeds_update_program, 0.0)
assert len(row["seconds"]) == 2 and isinstance(row["exponent"], float)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_benchmarks(name):
    subprocess.run([sys.executable, "-c", PROGRAMS[name]], check=True, cwd=ROOT)


def test_every_table_of_the_page_is_written_from_results():
    program = """
import re
from benchmarks import report
text = report.README.read_text()
for name in report.TABLES:
    assert re.search(f"<!-- {name} -->.*?<!-- end -->", text, re.DOTALL), name
assert report.table("ab", [(1, 2)]) == "| a | b |\\n| --- | --- |\\n| 1 | 2 |"
assert report.spread({"median": 1.5, "low": 1, "high": 2000}) == "1.5 (1–2,000)"
page = "<!-- a -->\\n<!-- end -->\\ntext\\n<!-- b -->\\nold\\n<!-- end -->"
filled = report.insert(report.insert(page, "a", "x"), "b", "y")
expected = "<!-- a -->\\nx\\n<!-- end -->\\ntext\\n<!-- b -->\\ny\\n<!-- end -->"
assert filled == expected, filled
assert report.insert(filled, "a", "x") == filled
assert report.stamp([]) == "Not measured yet."
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
