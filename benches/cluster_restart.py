"""How soon a node that was restarted answers again, with a million keys; and how soon a new one does, from a snapshot or the log.

Run: ``python benches/cluster_restart.py [--keys 1000000] [--shards 1] [--kill]``. Target: a restart below 5 s to ready.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import onefold as of
from common import data_dir
from onefold.cluster import daemons
from onefold.cluster.local import LocalCluster, LocalNode

BATCH = 10_000
VALUE = "v" * 60


def load(url: str, keys: int) -> None:
    """Put the keys by a client without replicas."""
    began_s = time.monotonic()
    with of.connect(url, replicas="remote") as db:
        table = db.map("bench")
        for start in range(0, keys, BATCH):
            batch = {f"key-{number:09}": VALUE for number in range(start, min(keys, start + BATCH))}
            table.put_many(batch, atomic=False)
    print(f"{keys:,} keys put in {time.monotonic() - began_s:.1f} s")


def ready(node: LocalNode) -> bool:
    """What the node says itself."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/ready", timeout=2) as answer:
            return bool(json.load(answer)["ok"])
    except (urllib.error.HTTPError, OSError):
        return False


def memory_mb(node: LocalNode) -> str:
    """What a node holds now and held at most."""
    lines = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    found = {
        name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()
    }
    return f"{int(found['VmRSS']) // 1024} MB, at most {int(found['VmHWM']) // 1024} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="what the node said")
    parser.add_argument("--kill", action="store_true", help="end the node by SIGKILL instead of SIGTERM")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=data_dir()) as folder:
        directory = Path(folder) / "c"
        cluster = LocalCluster.up(directory, nodes=2, shards=args.shards)
        try:
            load(cluster.url(), args.keys)
            node = cluster.nodes[-1]
            while not ready(node):
                time.sleep(0.1)
            for kind in ("restart", "from nothing"):
                daemons.end([daemons.read(node.dir / "pid.json")], 0.0 if args.kill else 40.0)
                if kind == "from nothing":
                    shutil.rmtree(node.dir / "replicas")
                began_s, log = time.monotonic(), node.dir / "node.log"
                seen = log.stat().st_size
                cluster = LocalCluster.up(directory)
                print(
                    f"{kind}: ready after {time.monotonic() - began_s:.2f} s (target of a restart < 5 s); "
                    f"its memory {memory_mb(cluster.nodes[-1])}"
                )
                if args.verbose:
                    print(log.read_bytes()[seen:].decode())
        finally:
            cluster.down(delete=True)


if __name__ == "__main__":
    main()
