"""scikit-learn's own tests of k-means, as installed, pass with its estimators and functions replaced by ours.

Seeds 0 and 1 of scikit-learn's fixture global_random_seed by default; DCFAST_SKLEARN_SEEDS=0-9 (`make test-sklearn`)
runs ten. Both dtypes of global_dtype. support/sklearn_suite.py does the replacing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Functions that call nothing but scikit-learn's private helpers: they pass whoever's estimators are installed.
HELPERS = {
    "test_k_means": {
        "test_euclidean_distance",
        "test_inertia",
        "test_is_same_clustering",
        "test_minibatch_reassign",
        "test_minibatch_update_consistency",
        "test_relocate_empty_clusters",
    },
    "test_bisect_k_means": set(),
}


def run_suite(module, report):
    environment = {
        **os.environ,
        "DCFAST_SKLEARN_REPORT": str(report),
        "OMP_WAIT_POLICY": "PASSIVE",  # as `make test` sets it
        "PYTHONPATH": str(Path(__file__).parent),
        "SKLEARN_TESTS_GLOBAL_RANDOM_SEED": os.environ.get("DCFAST_SKLEARN_SEEDS", "0-1"),
        "SKLEARN_RUN_FLOAT32_TESTS": "1",
    }
    options = ["-q", "-p", "support.sklearn_suite", "-p", "no:cacheprovider", "-c", os.devnull, "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, "--pyargs", f"sklearn.cluster.tests.{module}"]
    ended = subprocess.run(command, env=environment, cwd=report.parent, capture_output=True, text=True, check=False)
    assert report.exists(), ended.stdout + ended.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize(("module", "functions"), [("test_k_means", 58), ("test_bisect_k_means", 10)])
def test_scikit_learns_own_tests_pass(module, functions, tmp_path):
    tally = run_suite(module, tmp_path / "report.json")
    passing = {name for name, found in tally.items() if found["passed"] and not found["failed"] + found["skipped"]}
    ours = {name for name, found in tally.items() if found["ours"]}
    cases = sum(found["passed"] for found in tally.values())
    print(f"{module}: {len(passing & ours)} of {len(ours)} functions that call ours pass, in {cases} cases")
    print(f"{len(passing - ours)} of {len(tally) - len(ours)} of scikit-learn's helpers alone")
    reasons = [reason for name in tally if name not in passing for reason in tally[name]["reasons"]]
    assert passing == set(tally), "\n".join(reasons)
    assert len(tally) == functions, "another release of scikit-learn: count its functions anew"
    assert set(tally) - ours == HELPERS[module]
