"""`onefold node` with small limits, so that tests see in seconds what otherwise takes hours: KEY=VALUE ... -- arguments."""

import ast
import sys

from onefold import config
from onefold.cli import main

if __name__ == "__main__":
    at = sys.argv.index("--")
    for text in sys.argv[1:at]:
        name, _, value = text.partition("=")
        assert hasattr(config, name), name
        setattr(config, name, ast.literal_eval(value))
    main(sys.argv[at + 1 :])
