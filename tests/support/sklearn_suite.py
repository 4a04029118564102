"""A pytest plugin: scikit-learn's own tests, as installed, meet the estimators and functions of this package.

The names are replaced in `sklearn.cluster` before the test modules import them from there. What became of every test
function, and whether it called anything of ours, goes as JSON to the file that $DCFAST_SKLEARN_REPORT names.
"""

import collections
import functools
import json
import os

import pytest
import sklearn.cluster

import dcfast

NAMES = ("KMeans", "MiniBatchKMeans", "BisectingKMeans", "k_means", "kmeans_plusplus")

_calls = 0
_report = collections.defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0, "ours": False, "reasons": []})


def _counted(function):
    @functools.wraps(function)
    def count(*args, **kwargs):
        global _calls
        _calls += 1
        return function(*args, **kwargs)

    return count


for _name in NAMES:
    _ours = getattr(dcfast, _name)
    if isinstance(_ours, type):
        _ours.__init__ = _counted(_ours.__init__)
    else:
        _ours = _counted(_ours)
    setattr(sklearn.cluster, _name, _ours)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    before = _calls
    yield
    _report[item.originalname]["ours"] |= _calls > before


def pytest_runtest_logreport(report):
    name = report.nodeid.rpartition("::")[2].partition("[")[0]
    if report.when == "call" or report.outcome != "passed":
        _report[name][report.outcome] += 1
        if report.outcome != "passed":
            _report[name]["reasons"].append(f"{report.nodeid}: {str(report.longrepr)[-400:]}")


def pytest_sessionfinish():
    with open(os.environ["DCFAST_SKLEARN_REPORT"], "w") as file:
        json.dump(_report, file)
