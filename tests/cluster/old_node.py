"""``small_node.py`` as if another Polars were installed: VERSION, and then its arguments."""

import runpy
import sys
from pathlib import Path

from onefold.compute.code import needs as requirements

if __name__ == "__main__":
    version = sys.argv.pop(1)
    honest = requirements._version
    requirements._version = lambda module: version if module == "polars" else honest(module)
    runpy.run_path(str(Path(__file__).with_name("small_node.py")), run_name="__main__")
