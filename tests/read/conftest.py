"""Fixtures of the read wing's tests: run directories made by hand."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def handmade():
    """The module `handmade.py` beside this file."""
    spec = importlib.util.spec_from_file_location("handmade", Path(__file__).parent / "handmade.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
