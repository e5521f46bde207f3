"""A stream becomes a map that an application reads: each goal is in the score exactly once, also when a worker is killed.

python examples/live_scores.py [SPACE]
"""

import subprocess
import sys
import tempfile

import onefold as of
from onefold import agg

MATCHES = ("bern-basel", "genf-zug")
WORKER = "import sys, live_scores; live_scores.work(sys.argv[1])"


def scores(db: of.Database) -> of.LiveRun:
    """The job: it reads goals and puts the score of each match. A worker of this process works on it."""
    job = (
        db.read_stream("goals", follow=True)
        .group_by("match")
        .agg(home=agg.sum("home"), away=agg.sum("away"), goals=agg.count())
        .into_map("scores", key="match")
    )
    return job.start()


def work(space: str) -> None:
    """A worker in a process of its own: it works until it is killed."""
    with of.connect(space) as db:
        scores(db).wait()


def main(space: str) -> None:
    with of.connect(space) as db:
        goals = db.stream("goals")
        goals.append_many([goal(number) for number in range(40)])
        worker = subprocess.Popen([sys.executable, "-c", WORKER, space], cwd=sys.path[0])
        try:
            # An application only reads the map, and is notified when it changes.
            for _ in db.map("scores").watch(initial=True, timeout="60s"):
                if all(match in db.map("scores") for match in MATCHES):
                    break
        finally:
            worker.kill()  # as kill -9: perhaps in the middle of a commit
            worker.wait()

        goals.append_many([goal(number) for number in range(40, 50)])
        scores(db).catch_up("60s")  # another worker continues where the commits ended
        for match, score in sorted(db.map("scores").items()):
            print(f"{match} {score['home']}:{score['away']} after {score['goals']} goals")


def goal(number: int) -> dict[str, object]:
    """Every third goal is one of the guests."""
    away = int(number % 3 == 0)
    return {"match": MATCHES[number % 2], "home": 1 - away, "away": away}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
