"""Publishes with Django."""

from urllib.parse import urlsplit

import django
import trial
from django.conf import settings
from psycopg.types.json import Jsonb

url = urlsplit(trial.URL)
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "HOST": url.hostname,
            "PORT": url.port,
        }
    }
)
django.setup()

# docs:begin
import json

from django.db import connection, transaction


def publish(order):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("insert into orders (id, total) values (%s, %s)", [order["id"], order["total"]])
        cursor.execute(
            "select outbox.publish(%s, %s, key => %s)",
            ["shop.orders.create", json.dumps(order), str(order["id"])],
        )
        return cursor.fetchone()[0]
# docs:end


def run(sql, *given):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, given)


trial.twice(publish)
trial.trials(
    run,
    {"json.dumps(order)": json.dumps(trial.ORDER), "Jsonb(order)": Jsonb(trial.ORDER)},
    {"str": str(trial.KEY), "int": trial.ORDER["id"], "UUID": trial.KEY},
    {"topic": "%s", "given": "%s"},
)
