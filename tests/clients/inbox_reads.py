"""Reads the inbox of another database with psycopg, and asks twice whether an event is new."""

import json
import os

import psycopg

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    for id, topic, payload in connection.execute("select id::text, topic, payload from outbox.inbox order by position").fetchall():
        first, again = (
            connection.execute("select outbox.inbox_accept(%s, CAST(%s AS uuid))", ("shop", id)).fetchone()[0] for _ in range(2)
        )
        print(json.dumps({"id": id, "topic": topic, "payload": payload, "new": [first, again]}))
