"""Publishes with asyncpg."""

import asyncio

import trial

# docs:begin
import json

import asyncpg


async def publish(connection, order):
    async with connection.transaction():
        await connection.execute("insert into orders (id, total) values ($1, $2)", order["id"], order["total"])
        return await connection.fetchval(
            "select outbox.publish($1, $2, key => $3)", "shop.orders.create", json.dumps(order), str(order["id"])
        )
# docs:end


async def connect(with_codec):
    connection = await asyncpg.connect(trial.URL)
    if with_codec:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    return connection


with asyncio.Runner() as runner:
    plain, coded = runner.run(connect(False)), runner.run(connect(True))
    trial.twice(lambda order: runner.run(publish(plain, order)))

    def run(sql, topic, value):
        connection = coded if isinstance(value, dict) else plain
        runner.run(connection.execute(sql, topic, value))

    trial.trials(
        run,
        {"json.dumps(order)": json.dumps(trial.ORDER), "order, with a codec for jsonb": trial.ORDER},
        {"str": str(trial.KEY), "int": trial.ORDER["id"], "UUID": trial.KEY},
        {"topic": "$1", "given": "$2"},
    )
