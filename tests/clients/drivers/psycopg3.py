"""Publishes with psycopg 3."""

import trial
from psycopg.types.json import Json

# docs:begin
import psycopg
from psycopg.types.json import Jsonb


def publish(connection, order):
    with connection.transaction():
        connection.execute("insert into orders (id, total) values (%s, %s)", (order["id"], order["total"]))
        return connection.execute(
            "select outbox.publish(%s, %s, key => %s)", ("shop.orders.create", Jsonb(order), str(order["id"]))
        ).fetchone()[0]
# docs:end


def run(sql, *given):
    with connection.transaction():
        connection.execute(sql, given)


with psycopg.connect(trial.URL, autocommit=True) as connection:
    trial.twice(lambda order: publish(connection, order))
    text = trial.json.dumps(trial.ORDER)
    trial.trials(
        run,
        {"Jsonb(order)": Jsonb(trial.ORDER), "Json(order)": Json(trial.ORDER), "json.dumps(order)": text},
        {"str": str(trial.KEY), "int": trial.ORDER["id"], "UUID": trial.KEY},
        {"topic": "%s", "given": "%s"},
    )
