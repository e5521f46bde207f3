"""``python -m onefold.cli`` is ``onefold``."""

from onefold.cli import main

main()
