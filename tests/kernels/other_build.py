"""A pytest plugin that puts another build of the native module under test, e.g. one with sanitizers.

    NATIVE_MODULE=/tmp/san/_native.cpython-311-x86_64-linux-gnu.so \
        python -m pytest -p tests.kernels.other_build tests/kernels

Child processes inherit both where PYTEST_ADDOPTS names the plugin.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import etude.kernels

NAME = "etude.kernels._native"
spec = importlib.util.spec_from_file_location(NAME, os.environ["NATIVE_MODULE"])
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules[NAME] = module
spec.loader.exec_module(module)
etude.kernels._native = module
