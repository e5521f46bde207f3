"""The tables of live jobs: what one view shows, its rows, and what is known of windows that are still open.

==============  ================================================================================
module          what it has
==============  ================================================================================
``contents``    which runs and bundles one view shows
``rows``        from runs to the table's rows: closed windows, and those that are open
``keyed``       the rows of one key, without the others
``known``       names and types of a table's columns before a row is there
``estimates``   what the value of an open window says of its final one
``table``       ``LiveTable``, as programs use it
==============  ================================================================================

May import all of ``compute.live`` but ``worker`` and ``compiling``.
"""

from onefold.compute.live.tables.contents import LiveContents
from onefold.compute.live.tables.table import LiveTable, LiveTableStatus

__all__ = ["LiveContents", "LiveTable", "LiveTableStatus"]
