"""Publishes with psycopg2."""

import trial

# docs:begin
import psycopg2
from psycopg2.extras import Json


def publish(connection, order):
    with connection, connection.cursor() as cursor:
        cursor.execute("insert into orders (id, total) values (%s, %s)", (order["id"], order["total"]))
        cursor.execute(
            "select outbox.publish(%s, %s, key => %s)", ("shop.orders.create", Json(order), str(order["id"]))
        )
        return cursor.fetchone()[0]
# docs:end


def run(sql, *given):
    with connection, connection.cursor() as cursor:
        cursor.execute(sql, given)


psycopg2.extras.register_uuid()
connection = psycopg2.connect(trial.URL)
trial.twice(lambda order: publish(connection, order))
trial.trials(
    run,
    {"Json(order)": Json(trial.ORDER), "json.dumps(order)": trial.json.dumps(trial.ORDER)},
    {"str": str(trial.KEY), "int": trial.ORDER["id"], "UUID": trial.KEY},
    {"topic": "%s", "given": "%s"},
)
