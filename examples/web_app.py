"""A shop's web application on shared state: a rate limit, settings that all processes follow, an outbox, idempotent requests.

python examples/web_app.py [SPACE]            calls the application, as a client would
ONEFOLD_URL=shop uvicorn --app-dir examples --workers 4 "web_app:create_app" --factory        serves it, in four processes
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Header, HTTPException

import onefold as of


def create_app(space: str | None = None) -> FastAPI:
    settings: dict[str, int] = {"requests_per_minute": 60}
    sent: list[str] = []

    async def follow_settings(db: of.aio.AsyncDatabase) -> None:
        async with db.map("settings").watch(initial=True) as changes:
            async for change in changes:  # the present state first, then every change, from whatever process
                settings[change.key] = change.value or 60

    async def send_mail(db: of.aio.AsyncDatabase) -> None:
        while True:
            async with db.queue(
                "mail"
            ).get() as message:  # acknowledged after the block; given again if it fails
                if message is not None:
                    sent.append(f"{message.value['to']}: your order {message.value['order']}")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with of.aio.connect(space) as db:
            app.state.db, app.state.sent = db, sent
            await db.map("stock").setdefault("teapot", 2)
            tasks = [asyncio.create_task(follow_settings(db)), asyncio.create_task(send_mail(db))]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{item}")
    async def order(item: str, user: str = Header(), idempotency_key: str = Header()) -> dict[str, str]:
        db: of.aio.AsyncDatabase = app.state.db
        if await db.map("requests").increment(user, ttl="1m") > settings["requests_per_minute"]:
            raise HTTPException(429, "too many requests; wait a minute")

        async def buy(tx: of.aio.AsyncTransaction) -> None:
            stock = tx.map("stock")
            left = await stock.get(item, 0)
            if left == 0:
                raise HTTPException(409, f"{item} is sold out")
            await stock.put(item, left - 1)
            await tx.map("orders").put(idempotency_key, {"item": item, "user": user})
            await tx.queue("mail").put({"to": user, "order": idempotency_key})  # only if all this commits

        if await db.outcome(idempotency_key) != "committed":  # the same request again has the same answer
            await db.run_transaction(buy, request_id=idempotency_key)
        return {"order": idempotency_key, "item": item}

    return app


async def main(space: str) -> None:
    app = create_app(space)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for user, key in [("ann", "k1"), ("ann", "k1"), ("bob", "k2"), ("cid", "k3")]:
                answer = await client.post("/orders/teapot", headers={"user": user, "idempotency-key": key})
                print(user, key, answer.status_code, answer.json().get("detail", "ordered"))
            await app.state.db.map("settings").put("requests_per_minute", 2)
            while (
                await client.post("/orders/cup", headers={"user": "ann", "idempotency-key": "k4"})
            ).status_code != 429:
                pass
            while len(app.state.sent) < 2:
                await asyncio.sleep(0.01)
    with of.connect(space) as db:
        print("stock", db.map("stock")["teapot"], "mail", sorted(app.state.sent))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(folder))
