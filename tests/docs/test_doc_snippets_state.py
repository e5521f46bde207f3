"""The Python blocks of the documents on shared state run as they are written."""

import asyncio
import re
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

import onefold as of

ROOT = Path(__file__).parents[2]


def blocks(name, heading=None):
    """The Python blocks of a document, in order; those below a heading only."""
    text = (ROOT / name).read_text("utf-8")
    if heading is not None:
        text = re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code, **names):
    """Run it with these names; what it has defined."""
    exec(compile(code, "<document>", "exec"), names)
    return names


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONEFOLD_URL", raising=False)
    return tmp_path


def test_the_readme(home, capsys):
    (code,) = blocks("README.md", "Shared state")
    run(code, of=of)
    assert capsys.readouterr().out == "{'to': 'bob'}\n"
    with of.connect() as db:
        assert dict(db.map("accounts")) == {"alice": 90, "bob": 10}
        assert db.outcome("transfer-7") == "committed"


def test_maps(home):
    first, watching, _ = blocks("docs/maps.md")
    names = run(first, of=of)
    db = names["db"]
    assert dict(names["m"]) == {"alice": {"balance": 100}}
    applied, saved = [], []
    db.map("settings")["color"] = "blue"

    def save(token):
        saved.append(token)
        raise StopIteration

    with pytest.raises(StopIteration):
        run(watching, db=db, apply=lambda *change: applied.append(change), save=save)
    assert applied == [("color", "blue")]
    db.map("settings")["size"] = 7
    with db.map("settings").watch(start=saved[0]) as changes:
        assert next(changes).key == "size"
    db.close()


def test_maps_with_asyncio(home):
    code = blocks("docs/maps.md")[-1]
    names = run("async def program():\n" + textwrap.indent(code, "    "), of=of)
    asyncio.run(names["program"]())
    with of.connect("space") as db:
        assert dict(db.map("accounts")) == {"alice": 2}


def test_the_table_of_maps(home):
    """Each line of it, as it says."""
    with of.connect() as db:
        m = db.map("m")
        k, v = "k", 1
        m.put(k, v, ttl="1h")
        item = m.get_item(k)
        assert item.expires_at is not None
        m.put(k, v, if_version=item.version)
        for stale in ({"if_version": item.version}, {"if_version": str(item.version)}, {"if_absent": True}):
            with pytest.raises(of.Conflict) as lost:
                m.put(k, 5, **stale)
            assert lost.value.definite and m[k] == 1
        m.put_many({"a": 1, "b": 2})
        m.update({"c": 3})
        m.put_many(((("n", n), n) for n in range(100)), atomic=False)
        assert m.increment("hits") == 1 and m.increment("hits", 2.5) == 3.5
        assert m.modify("a", lambda old: old + 1, 0) == 2
        assert m.pop("c") == 3 and m.setdefault("b", 9) == 2 and m.popitem()[0] in (*"abk", "hits", ("n", 99))
        assert [key for key, _ in m.scan(prefix=("n",), start=("n", 5), limit=2)] == [("n", 5), ("n", 6)]
        assert [key for key, _ in m.scan(prefix="n", stop=("n", 2), reverse=True)] == [("n", 1), ("n", 0)]


def test_transactions(home):
    first, order = blocks("docs/transactions.md")
    calls = []
    with of.connect() as db:
        db.map("accounts")["alice"] = 100
        run(first, db=db, transfer=calls.append)
        assert dict(db.map("accounts")) == {"alice": 90, "bob": 10} and len(calls) == 1
        assert [record.value for record in db.stream("audit").read()] == [{"amount": 10}]
        with db.queue("mail").get(timeout=0) as msg:
            assert msg.value == {"to": "bob"}
        for _ in range(2):
            run(order, db=db, order=lambda tx: tx.map("orders").increment("n"), order_id="o-1")
        assert db.map("orders")["n"] == 1 and db.outcome("o-1") == "committed"


def test_queues_locks_and_streams(home, onefold_clock):
    queues, locks, streams, consumers = blocks("docs/queues.md")
    with onefold_clock.connect() as db:
        sent, reports = [], []
        run(queues.split("with q.get")[0], db=db)
        assert len(db.queue("mail")) == 1
        onefold_clock.advance("10s")
        run(queues, db=db, send=sent.append)  # the same request: nothing is put again
        assert sent == [{"to": "ann"}] and len(db.queue("mail")) == 0

        def write_report(fencing_token):
            reports.append(fencing_token)

        for _ in range(2):
            run(locks, db=db, write_report=write_report)
        assert reports == sorted(set(reports)) and len(reports) == 2
        frame = pl.DataFrame({"user": ["u1", "u2"]})
        names = run(streams.replace("follow=True", "follow=False"), db=db, frame=frame)
        assert names["s"].to_polars().height == 3
        db.stream("prices").append({"price": 5}, key="k")
        priced = consumers.replace('s.consumer("billing")', 's.consumer("billing", timeout=0)')
        for _ in range(2):
            run(priced, db=db, s=db.stream("prices"))
        assert dict(db.map("totals")) == {"k": 5}


def test_consistency(home):
    (code,) = blocks("docs/consistency.md")
    url = str(home / "space")
    with of.connect(url) as db:
        m = db.map("m")
        m["k"] = 1
        names = run(code.replace("...\n", 'm["k"] = 2\n'), of=of, db=db, m=m, url=url)
        assert names["db"].map("m")["k"] == 2 and names["past"].map("m")["k"] == 1
        names["db"].close()


PROGRAMS = """
def teller(db):
    def move(tx):
        accounts = tx.map("accounts")
        accounts["ann"] -= 1
        accounts["bob"] += 1

    for _ in range(5):
        db.run_transaction(move)


def auditor(db):
    with db.transaction(read_only=True) as tx:
        assert sum(tx.map("accounts").values()) == 200


"""


def test_the_document_on_testing(tmp_path):
    path = tmp_path / "test_document.py"
    path.write_text(PROGRAMS + "\n\n".join(blocks("docs/testing.md")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--onefold-seeds", "3", path]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0 and "11 passed" in ended.stdout, ended.stdout


def test_live_jobs(home, capsys):
    (code,) = blocks("docs/live-jobs.md")
    names = run(code, of=of)
    assert "shape: (2, 4)" in capsys.readouterr().out  # the first minute of both pages
    rows = names["table"].to_polars().select("window_start", "page", "n").rows()
    minutes = [names["noon"], names["noon"] + timedelta(minutes=1)]
    assert rows == [(at, page, n) for at, n in zip(minutes, (30, 20), strict=True) for page in "ab"]
    assert names["run"].state == "done"
    names["db"].close()
