"""Cancels a coroutine at its k-th suspension: before the call that it waits for has begun, while it runs, when it has just ended
(so that its result is there, and lost), or twice in a row."""

import asyncio

HOW = ("at once", "meanwhile", "at the end", "twice")


class Cancelled(Exception):
    """The coroutine was cancelled."""


class Cancelling:
    """Awaits a coroutine, and cancels the task at its k-th suspension."""

    def __init__(self, coroutine, at, how, pause_s):
        self._coroutine, self._at, self._how, self._pause_s = coroutine, at, how, pause_s

    def __await__(self):
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        steps = self._coroutine.__await__()
        error, count = None, 0
        while True:
            try:
                waits_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            error, count = None, count + 1
            if count == self._at:
                if self._how == "at the end" and waits_for is not None:
                    waits_for.add_done_callback(lambda _: task.cancel())
                elif self._how == "meanwhile":
                    loop.call_later(self._pause_s, task.cancel)
                else:
                    loop.call_soon(task.cancel)
                if self._how == "twice":
                    loop.call_later(self._pause_s, task.cancel)
            try:
                yield waits_for
            except BaseException as raised:
                error = raised


async def cancelled_at(coroutine, at, how, pause_s):
    """What it returns. Raises Cancelled when the cancellation came first."""

    async def run():
        return await Cancelling(coroutine, at, how, pause_s)

    task = asyncio.create_task(run())
    try:
        return await task
    except asyncio.CancelledError:
        assert task.cancelled()
        raise Cancelled from None
