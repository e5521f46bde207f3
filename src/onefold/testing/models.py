"""Sequential models: what a single, unshared object would answer. The linearizability checker compares with them.

``step(state, operation)`` says whether the operation may answer what it answered in this state, and gives the next
state. States are hashable and compared by equality. An operation of unknown outcome (info) without a result may have
answered anything. Kinds a model does not know raise ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onefold.testing.history import Operation

Step = Callable[[Any, Operation], tuple[bool, Hashable]]
Specialised = tuple[Sequence[Operation], Step]


@dataclass(frozen=True, slots=True)
class Model:
    """A sequential object.

    ``reads`` are the kinds that never change the state in any state; the search takes them as early as it can.
    ``specialise``, if given, sees all operations of one object that may have happened. It may leave out those of unknown
    outcome that cannot help to explain any result, and give a step that refuses earlier what cannot end well.
    """

    name: str
    initial: Hashable
    step: Step
    reads: frozenset[str] = frozenset({"read"})
    specialise: Callable[[Sequence[Operation]], Specialised] | None = None


def register(initial: Hashable = None) -> Model:
    """``read`` -> value; ``write`` value; ``cas`` (expected, new) -> whether it was set."""
    return Model("register", freeze(initial), _register_step, specialise=_register_specialised)


def _register_step(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    if op.kind == "read":
        return _unanswered(op) or freeze(op.result) == state, state
    if op.kind == "write":
        return True, freeze(op.value)
    if op.kind == "cas":
        expected, new = freeze(op.value)
        if _unanswered(op):
            return True, new if state == expected else state
        if not isinstance(op.result, bool):
            raise ValueError(f"the result of a cas is True or False: {op}")
        return (state == expected) is op.result, new if op.result else state
    raise _strange(op, "register")


def _register_specialised(operations: Sequence[Operation]) -> Specialised:
    # A value nobody saw or expected explains nothing, unless a compare-and-set was refused because of it.
    if any(op.kind == "cas" and op.status == "ok" and op.result is False for op in operations):
        return operations, _register_step
    needed = {freeze(op.result) for op in operations if op.kind == "read" and op.status == "ok"}
    needed |= {freeze(op.value)[0] for op in operations if op.kind == "cas"}

    def helps(op: Operation) -> bool:
        written = op.value[1] if op.kind == "cas" else op.value
        return freeze(written) in needed

    helpful = [op for op in operations if op.status == "ok" or op.kind not in {"write", "cas"} or helps(op)]
    return helpful, _register_step


def counter(initial: int = 0) -> Model:
    """``add`` amount -> the new value, or None if the answer does not tell; ``read`` -> value."""
    return Model("counter", initial, _counter_step)


def _counter_step(state: int, op: Operation) -> tuple[bool, int]:
    if op.kind == "read":
        return _unanswered(op) or op.result == state, state
    if op.kind == "add":
        new = state + op.value
        return op.result is None or op.result == new, new
    raise _strange(op, "counter")


def grow_and_shrink_set(initial: Iterable[Hashable] = ()) -> Model:
    """``add`` element, ``remove`` element; ``contains`` element -> bool; ``read`` -> all elements."""
    return Model("set", frozenset(initial), _set_step, reads=frozenset({"read", "contains"}))


def _set_step(state: frozenset[Hashable], op: Operation) -> tuple[bool, frozenset[Hashable]]:
    if op.kind == "read":
        return _unanswered(op) or _same_elements(state, op.result), state
    element = freeze(op.value)
    if op.kind == "add":
        return True, state | {element}
    if op.kind == "remove":
        return True, state - {element}
    if op.kind == "contains":
        return _unanswered(op) or (element in state) is op.result, state
    raise _strange(op, "set")


def _same_elements(state: frozenset[Hashable], result: Any) -> bool:
    return len(result) == len(state) and frozenset(freeze(element) for element in result) == state


class _Fifo(NamedTuple):
    """The elements, oldest first. The rest helps the search: which elements that a get answered were put, as bits, and
    how many elements that no get answered are gone."""

    elements: tuple[Hashable, ...] = ()
    put: int = 0
    gone: int = 0

    def __repr__(self) -> str:
        return repr(self.elements)


def fifo_queue() -> Model:
    """``put`` element; ``get`` -> the oldest element, or None if the queue is empty."""
    return Model("FIFO queue", _Fifo(), _fifo_step, reads=frozenset(), specialise=_fifo_specialised)


def _fifo_step(state: _Fifo, op: Operation) -> tuple[bool, _Fifo]:
    if op.kind == "put":
        return True, state._replace(elements=(*state.elements, freeze(op.value)))
    if op.kind == "get":
        head = state.elements[0] if state.elements else None
        return _unanswered(op) or head == freeze(op.result), state._replace(elements=state.elements[1:])
    raise _strange(op, "FIFO queue")


def _fifo_specialised(operations: Sequence[Operation]) -> Specialised:
    # The orders of concurrent puts are very many. Most are wrong, and that shows only when the elements are taken,
    # unless one looks ahead: an element cannot be put before one that was taken earlier. Elements that nobody was given
    # leave only by gets of unknown outcome, so no more of them than there are such gets can come before an element
    # that was given; and which of them is where makes no difference.
    puts = [freeze(op.value) for op in operations if op.kind == "put"]
    gets = {freeze(op.result): op for op in operations if op.kind == "get" and op.result is not None}
    unknown_gets = sum(op.kind == "get" and _unanswered(op) for op in operations)
    if len(set(puts)) < len(puts) or any(op.status == "info" for op in gets.values()):
        return operations, _fifo_step
    bit = {element: 1 << i for i, element in enumerate(gets)}
    before = {e: sum(bit[f] for f in gets if gets[f].precedes(get)) for e, get in gets.items()}

    def step(state: _Fifo, op: Operation) -> tuple[bool, _Fifo]:
        elements, put, gone = state
        if op.kind == "get" and _unanswered(op):
            given = bool(elements) and elements[0] is not _NEVER_GIVEN
            return not given, _Fifo(elements[1:], put, gone + len(elements[:1]))
        if op.kind != "put":
            return _fifo_step(state, op)
        element = freeze(op.value)
        if element not in gets:
            return True, _Fifo((*elements, _NEVER_GIVEN), put, gone)
        fits = gone + elements.count(_NEVER_GIVEN) <= unknown_gets
        return fits and not before[element] & ~put, _Fifo((*elements, element), put | bit[element], gone)

    # A put of unknown outcome whose element nobody was given only stands in the way.
    return [
        op for op in operations if op.kind != "put" or op.status == "ok" or freeze(op.value) in gets
    ], step


class _NeverGiven:
    """Stands for every element that no get has answered."""

    def __repr__(self) -> str:
        return "(an element nobody was given)"


_NEVER_GIVEN = _NeverGiven()


def unordered_queue() -> Model:
    """``put`` element; ``get`` -> any element in the queue, or None if the queue is empty."""
    return nondeterministic("unordered queue", frozenset(), _bag_steps)


def _bag_steps(
    state: frozenset[tuple[Hashable, int]], op: Operation
) -> list[frozenset[tuple[Hashable, int]]]:
    counts = dict(state)
    if op.kind == "put":
        element = freeze(op.value)
        return [frozenset((counts | {element: counts.get(element, 0) + 1}).items())]
    if op.kind != "get":
        raise _strange(op, "unordered queue")
    if not counts:
        return [state] if _unanswered(op) or op.result is None else []
    taken = list(counts) if _unanswered(op) else [freeze(op.result)]
    return [_without(counts, element) for element in taken if element in counts]


def _without(counts: dict[Hashable, int], element: Hashable) -> frozenset[tuple[Hashable, int]]:
    return frozenset((name, n - (name == element)) for name, n in counts.items() if name != element or n > 1)


def mutex() -> Model:
    """``acquire`` and ``release`` -> None or True, or False if refused. The owner is ``value``, or the process."""
    return Model("mutex", None, _mutex_step, reads=frozenset())


def _mutex_step(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    owner = op.process if op.value is None else freeze(op.value)
    if op.kind not in {"acquire", "release"}:
        raise _strange(op, "mutex")
    possible = state is None if op.kind == "acquire" else state == owner
    after = owner if op.kind == "acquire" else None
    if _unanswered(op):
        return True, after if possible else state
    granted = op.result is not False
    return possible is granted, after if granted else state


def nondeterministic(
    name: str,
    initial: Hashable,
    steps: Callable[[Any, Operation], Iterable[Hashable]],
    reads: frozenset[str] = frozenset(),
) -> Model:
    """A model whose operations may lead to several states: ``steps`` lists them, none if the answer is impossible.

    Its state is the set of states it may be in (the power set construction, as in Porcupine's nondeterministic models).
    """

    def step(states: frozenset[Hashable], op: Operation) -> tuple[bool, Hashable]:
        after = frozenset(new for state in states for new in steps(state, op))
        return bool(after), after

    return Model(name, frozenset({initial}), step, reads)


def freeze(value: Any) -> Any:
    """A hashable value that is equal iff the given one is: lists become tuples, dictionaries and sets frozen sets."""
    match value:
        case list() | tuple():
            return tuple(freeze(each) for each in value)
        case dict():
            return frozenset((freeze(name), freeze(each)) for name, each in value.items())
        case set() | frozenset():
            return frozenset(freeze(each) for each in value)
        case _:
            return value


def _unanswered(op: Operation) -> bool:
    return op.status == "info" and op.result is None


def _strange(op: Operation, model: str) -> ValueError:
    return ValueError(f"a {model} has no operation {op.kind!r}: {op}")
