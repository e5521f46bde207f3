"""The kinds of collections that there are, as everything that looks at all of them sees them.

What the fold knows of each kind is in ``state.fold.kinds``.
"""

from __future__ import annotations

from typing import Final

from onefold.state.core.contents import Contents
from onefold.state.live import contents as live
from onefold.state.locks import contents as locks
from onefold.state.maps import contents as maps
from onefold.state.queues import contents as queues
from onefold.state.streams import contents as streams

KINDS: Final[tuple[Contents, ...]] = (
    maps.CONTENTS,
    queues.CONTENTS,
    streams.CONTENTS,
    locks.CONTENTS,
    live.CONTENTS,
)
"""In the order of lists and exports."""
