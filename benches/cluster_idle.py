"""What a cluster costs that nobody uses: three servers and three nodes with twelve shards, as ``onefold up`` starts them.

Run: ``python benches/cluster_idle.py [--seconds 20] [--shards 12] [--nodes 3]``. Prints the share of one processor that each
process took, and its memory. Target: all nodes together below 10 % of one processor; memory of a node is stated.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from common import data_dir
from onefold.cluster.local import LocalCluster

SETTLE_S = 10.0
"""After the start, in which replicas still move."""


def processor_s(pid: int) -> float:
    """Processor time of a process so far, children that were waited for included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[at]) for at in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def status(pid: int) -> dict[str, str]:
    """Fields of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=data_dir()) as folder:
        cluster = LocalCluster.up(Path(folder) / "c", nodes=args.nodes, shards=args.shards)
        try:
            pids = {node.name: node.pid for node in cluster.nodes}
            pids |= {server.name: server.pid for server in cluster.servers.servers}
            running = {name: pid for name, pid in pids.items() if pid is not None}
            time.sleep(SETTLE_S)
            began_s, before = time.monotonic(), {name: processor_s(pid) for name, pid in running.items()}
            time.sleep(args.seconds)
            elapsed_s = time.monotonic() - began_s
            shares = {name: (processor_s(pid) - before[name]) / elapsed_s for name, pid in running.items()}
            for name, pid in running.items():
                seen = status(pid)
                memory_mb = int(seen["VmRSS"].split()[0]) / 1024
                print(
                    f"{name:4} {shares[name]:6.1%} of a processor, {memory_mb:5.0f} MB, {seen['Threads']} threads"
                )
            nodes = sum(shares[node.name] for node in cluster.nodes)
            print(
                f"{args.nodes} nodes x {args.shards} shards idle: {nodes:.1%} of a processor in all (target < 10 %); "
                f"with their servers {sum(shares.values()):.1%}"
            )
        finally:
            cluster.down(delete=True)


if __name__ == "__main__":
    main()
