"""Digests of code: instructions with their arguments by value, and what a function names outside itself."""

from __future__ import annotations

import dis
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

DIGEST_BYTES = 16
_WITHOUT_MEANING = frozenset({"EXTENDED_ARG", "CACHE", "NOP"})
_MEANINGFUL_FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
"""*args, **kwargs, generator, coroutine, iterable coroutine, async generator; not: nested, ``__future__`` imports."""


def hash_parts(*parts: bytes | str | int) -> bytes:
    """BLAKE2b of parts with their types and lengths, so that no two lists of parts run together."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        if isinstance(part, str):
            data, tag = part.encode("utf-8", "surrogatepass"), b"s"
        elif isinstance(part, int):
            data, tag = str(int(part)).encode(), b"i"
        else:
            data, tag = part, b"b"
        state.update(tag + len(data).to_bytes(8, "big"))
        state.update(data)
    return state.digest()


def code_digest(code: CodeType, value: Callable[[object, str], bytes]) -> bytes:
    """The digest of what the code does: no lines, no names of files, no docstrings, no position of constants.

    ``value`` gives the digest of a constant. Jumps and exception handlers are written by the number of the
    instruction, so that instructions without meaning, which the compiler keeps for tracing lines, do not count.
    """
    ops = [op for op in dis.get_instructions(code) if op.opname not in _WITHOUT_MEANING]
    offsets = [op.offset for op in ops]

    def number(offset: int) -> int:
        return bisect_left(offsets, offset)

    parts: list[bytes] = []
    for op in ops:
        if op.opcode in dis.hasconst:
            argument = value(op.argval, code.co_name)
        elif op.opcode in dis.hasjrel or op.opcode in dis.hasjabs:
            argument = hash_parts(number(op.argval))
        elif op.arg is None:
            argument = b""
        else:
            argument = hash_parts(op.argval if isinstance(op.argval, str | int) else op.arg)
        parts.append(hash_parts(op.opname, argument))
    handlers = [
        hash_parts(number(entry.start), number(entry.end), number(entry.target), entry.depth, entry.lasti)
        for entry in getattr(dis.Bytecode(code), "exception_entries", ())
    ]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return hash_parts(
        "code",
        code.co_flags & _MEANINGFUL_FLAGS,
        *counts,
        *arguments,
        hash_parts(*parts),
        hash_parts(*handlers),
    )


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of all functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def loaded_globals(fn: FunctionType) -> list[str]:
    """The global names that the function, or one inside it, reads; sorted."""
    return sorted(
        {
            op.argval
            for code in codes(fn.__code__)
            for op in dis.get_instructions(code)
            if op.opname in {"LOAD_GLOBAL", "LOAD_NAME"}
        }
    )


def mentioned(fn: FunctionType) -> frozenset[str]:
    """All names and texts in the code: whatever it may look up in a module by name."""
    found: set[str] = set()
    for code in codes(fn.__code__):
        found.update(code.co_names)
        found.update(constant for constant in code.co_consts if isinstance(constant, str))
    return frozenset(found)


def imports(fn: FunctionType) -> list[str]:
    """Absolute names of the modules that ``import`` statements inside the function name; sorted."""
    package = fn.__globals__.get("__package__") or ""
    found: set[str] = set()
    for code in codes(fn.__code__):
        recent: list[Any] = []
        base = ""
        for op in dis.get_instructions(code):
            if op.opname in {"LOAD_CONST", "LOAD_SMALL_INT"}:
                recent = [*recent[-1:], op.argval]
            elif op.opname == "IMPORT_NAME":
                level = recent[0] if len(recent) == 2 and isinstance(recent[0], int) else 0
                base = _absolute(op.argval, package, level)
                found.add(base)
            elif op.opname == "IMPORT_FROM":
                found.add(f"{base}.{op.argval}")
    return sorted(found)


def _absolute(name: str, package: str, level: int) -> str:
    if not level:
        return name
    parent = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{parent}.{name}" if name else parent
