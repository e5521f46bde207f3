"""A node that serves, for the files of this folder."""

from contextlib import closing

import pytest

from support.serving_node import Node


@pytest.fixture
def node():
    with closing(Node()) as made:
        made.m.update({"a": 1, "b": 2})
        yield made
