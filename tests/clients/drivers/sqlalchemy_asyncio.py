"""Publishes with SQLAlchemy's asyncio extension and asyncpg."""

import asyncio

import trial
import trial_sqlalchemy

# docs:begin
import json

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine


async def publish(engine, order):
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("insert into orders (id, total) values (:id, :total)"), order)
        return await session.scalar(
            text("select outbox.publish(:topic, cast(:payload as jsonb), key => :key)"),
            {"topic": "shop.orders.create", "payload": json.dumps(order), "key": str(order["id"])},
        )
# docs:end


async def execute(statement, parameters):
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(statement, parameters)


engine = create_async_engine(trial.URL.replace("postgres://", "postgresql+asyncpg://").split("?")[0])
with asyncio.Runner() as runner:
    trial.twice(lambda order: runner.run(publish(engine, order)))
    trial_sqlalchemy.trials(lambda *call: runner.run(execute(*call)))
    runner.run(engine.dispose())
