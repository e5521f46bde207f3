"""Files that another process still writes are read by whole lines, wherever tests read them."""

from __future__ import annotations

import ast
from pathlib import Path

from support.whole_lines import json_lines, whole_lines

TESTS = Path(__file__).parents[2]
HELPER = TESTS / "support" / "whole_lines.py"
ENDED = {
    "test_nodes_are_ready_and_come_back_and_more_can_be_added",
    "test_a_region_that_lost_its_end_or_its_folder_comes_again",
    "check",  # of regions that come again
    "read",  # of the history of a fire, which leaves out a line without an end itself
}
"""They read what a process wrote that has ended."""


def test_a_line_that_has_no_end_yet_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    assert whole_lines(path) == json_lines(path) == []
    whole = '{"event": "é\\u2028 is not the end of a line"}\nnot JSON\n'.encode()
    for half in (b"", b"{", b'{"time":', '{"event": "é'.encode()[:-1], b'{"event": "all but its end"}'):
        path.write_bytes(whole + half)
        assert json_lines(path) == [{"event": "é\u2028 is not the end of a line"}]
        assert whole_lines(path)[1:] == ["not JSON"]
        assert whole_lines(path, skip=len(whole)) == []


def _reads_half_lines(function: ast.AST) -> bool:
    """Whether it takes a file apart into lines and each line for JSON."""
    used = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    return (
        bool({"splitlines", "split"} & used) and "loads" in used and bool({"read_text", "read_bytes"} & used)
    )


def test_nobody_else_reads_lines_of_json_from_a_file() -> None:
    found = {
        node.name
        for path in TESTS.rglob("*.py")
        if path != HELPER
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and _reads_half_lines(node)
    }
    assert found == ENDED, "use json_lines of support/whole_lines.py"
