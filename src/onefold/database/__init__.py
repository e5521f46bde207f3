"""What a program holds of an open space: ``Database``, in ``handle``; what it does with jobs is in ``jobs``, and when
it removes what nothing names any more in ``sweeping``.

May import ``folds`` and everything below it: the lowest place that knows jobs and shared state.
"""

from onefold.database.handle import Database

__all__ = ["Database"]
