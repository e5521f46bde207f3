"""The project writes idiomatic technical English: turns that a reader trips over do not come back into code or documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVOIDED = {
    r"\bgo(?:es|ing)? on\b|\bwent on\b|\bgone on\b": "continue, resume",
    r"\banew\b": "again; recreate",
    r"\bonce more\b": "again",
    r"\bnow and then\b": "periodically, from time to time",
    r"\bmend (?:it|that|this|the (?:plan|function|job|program|data))\b": "fix",
    r"\bin vain\b": "without success",
    r"\bfor good\b": "permanently; which cannot be changed",
    r"\bin hand\b": "in progress",
    r"\b(?:is|are|was|were|be|been|being) told\b(?! to\b)": "is notified, is reported",
    r"\bsaid to be\b": "reported as",
    r"\btells another story\b": "has diverged",
    r"\b(?:for|by|to) who has no\b": "for a node that has no",
    r"\bwhoever\b": "the caller, anyone who",
    r"(?<!there )\bis no (?!longer\b|more\b|less\b|older\b|better\b|wider\b|reason\b)[A-Za-z`]": "is not a",
    r"\bmay have no\b": "must not have; can have no",
    r"\bbeside\b": "next to, in addition to, compared with",
    r"\buntil it is as far\b|\bwhere it is not,": "until it has caught up; otherwise",
    r"_(?:waits|without_a_word)\"|\bwas_expired\b|\bnodes_differ\b": "the present name of the event or metric",
}
_FORMER = "a former name, which this release still gives"
_REPLICATED = "a fold's answer is part of the replicated state, which must be the same in every release"
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
"""From Python 3.12 on the text of an f-string is a token of its own."""
ALLOWED: dict[tuple[str, str], str] = {
    ("src/onefold/node/telemetry/logging.py", '_waits"'): _FORMER,
    ("src/onefold/node/telemetry/logging.py", "was_expired"): _FORMER,
    ("src/onefold/node/telemetry/logging.py", '_without_a_word"'): _FORMER,
    ("src/onefold/node/telemetry/logging.py", "nodes_differ"): _FORMER,
    ("src/onefold/compute/jobs/fold.py", "is no b"): _REPLICATED,
    ("src/onefold/compute/jobs/fold.py", "go on"): _REPLICATED,
    ("src/onefold/compute/jobs/submit.py", "anew"): _REPLICATED,
    ("docs/cluster.md", "was_expired"): _FORMER,
    ("docs/cluster.md", "nodes_differ"): _FORMER,
    ("CHANGELOG.md", "was_expired"): _FORMER,
    ("CHANGELOG.md", "nodes_differ"): _FORMER,
}
"""By file and phrase: why it stays there."""
TEXTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
    ]
)
SOURCES = sorted(path for folder in ("src", "examples", "benches") for path in (ROOT / folder).rglob("*.py"))


def prose(source: str) -> list[tuple[int, str]]:
    """The comments and strings of Python code with the lines at which they begin; those that are one word are names."""
    found: list[tuple[int, str]] = []
    comment = 0
    """The line after the last comment: one there continues it."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text, line = token.string, token.start[0]
        if token.type == tokenize.COMMENT:
            if line == comment:
                found[-1] = (found[-1][0], f"{found[-1][1]}\n{text}")
            else:
                found.append((line, text))
            comment = line + 1
        elif token.type in STRINGS and (
            " " in text or "_" in text
        ):  # with an underscore: an event or a metric
            found.append((line, text))
    return found


def paragraphs(text: str) -> list[tuple[int, str]]:
    """What is between blank lines, with the line at which it begins."""
    found: list[tuple[int, str]] = []
    for paragraph in re.finditer(r"(?:.+\n?)+", text):
        found.append((1 + text.count("\n", 0, paragraph.start()), paragraph[0]))
    return found


def hits(name: str, parts: list[tuple[int, str]]) -> list[str]:
    """Each avoided phrase in these texts: where it is, and what to write."""
    found: list[str] = []
    for line, text in parts:
        one_line = re.sub(r"\s*\n\s*#?\s*", " ", text)
        for pattern, instead in AVOIDED.items():
            for hit in re.finditer(pattern, one_line, re.IGNORECASE):
                if (name, hit[0].lower()) not in ALLOWED:
                    found.append(f"{name}:{line}: {hit[0]!r}: write {instead}")
    return found


def test_the_code_is_written_in_plain_english() -> None:
    found = [
        hit for path in SOURCES for hit in hits(str(path.relative_to(ROOT)), prose(path.read_text("utf-8")))
    ]
    assert len(SOURCES) > 300
    assert not found, "\n".join(found)


def test_the_documents_are_written_in_plain_english() -> None:
    found = [
        hit
        for path in TEXTS
        for hit in hits(str(path.relative_to(ROOT)), paragraphs(path.read_text("utf-8")))
    ]
    assert not found, "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    for (name, phrase), why in ALLOWED.items():
        assert why and phrase in (ROOT / name).read_text("utf-8").lower(), f"{name} has no {phrase!r}"


@pytest.mark.parametrize(
    "text",
    [
        '"""A run goes on."""', "# made anew", 'f"{a} once more"', "# tried in vain", '"it is for good"', "# tasks in hand",
        '"The caller is told."', '"said to be left"', '"""For who has no state."""', "# Whoever asks", 'f"{a} is no file"',
        "# looked for now and then", '"An account may have no streams"', "# beside it", 'log.info("snapshots_waits")',
        '"Mend that."', '"""It goes\n    on."""', "# it goes\n# on",
    ],
)  # fmt: skip
def test_each_phrase_is_found(text: str) -> None:
    assert hits("x.py", prose(text))


def test_idioms_that_look_alike_are_not_found() -> None:
    assert not hits("x.py", prose('# there is no file, it is no longer told to end; "going_on"\nbeside = 1'))


WORDS_MAX = 45
LAYOUT = re.compile(r"\S {3,}\S|={4}")
"""A table or a tree in a docstring: no sentences."""


def sentences(text: str) -> list[str]:
    """Of prose in Markdown or in a docstring, with what is code as one word each."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||#))", text):
        paragraph = part.strip("\n")
        if paragraph.lstrip().startswith(("|", "#", ">>>")) or LAYOUT.search(paragraph):
            continue
        plain = re.sub(r"``[^`]*``|`[^`]*`", "x", paragraph)
        found += re.split(r"(?<=[.!?:;])[)\"*]*\s+(?=[A-Z0-9*\"(x])", " ".join(plain.split()))
    return found


def words(sentence: str) -> int:
    return len(re.findall(r"[A-Za-z0-9][\w'’./-]*", sentence))


def test_no_sentence_is_too_long_to_be_read_once() -> None:
    parts = [(path, path.read_text("utf-8")) for path in TEXTS if path.parent != ROOT]
    parts += [(path, ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") for path in SOURCES]
    found = [
        f"{path.relative_to(ROOT)}: {words(one)} words: {one[:80]}..."
        for path, text in parts
        for one in sentences(text)
        if words(one) > WORDS_MAX
    ]
    assert not found, "split:\n" + "\n".join(found)


def test_a_long_sentence_is_found_and_code_and_tables_are_not_counted() -> None:
    long = " ".join(["word"] * (WORDS_MAX + 1))
    assert [words(one) for one in sentences(f"One. {long.capitalize()}\nmore. Two.")] == [1, WORDS_MAX + 2, 1]
    left_out = f"```\n{long}\n```\n\n| {long} |\n\nkey     {long}"
    assert max(map(words, sentences(left_out)), default=0) <= WORDS_MAX
    assert words(sentences(f"It is `{long}` here.")[0]) == 4
