"""Small steps around transactions: what a map holds, and work in another thread."""

from concurrent.futures import ThreadPoolExecutor


def elsewhere(fn):
    """Run in another thread, where the block's guard does not hold."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def contents(db, name="m"):
    with db.transaction(read_only=True) as tx:
        return dict(tx.map(name))
