"""Publish from Python, in the transaction that writes the data.

pip install "psycopg[binary]"
DATABASE_URL=postgres://… python examples/publish/publish.py
"""

import os

import psycopg
from psycopg.types.json import Jsonb

order = {"id": 1003, "total": 2500}

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:  # commits at the end, rolls back on an exception
        # … your statements, in the same transaction …
    (event_id,) = connection.execute(
        "select outbox.publish(%s, %s, key => %s)",
        ("shop.orders.create", Jsonb(order), str(order["id"])),
    ).fetchone()

print(event_id)
