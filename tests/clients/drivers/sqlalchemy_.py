"""Publishes with SQLAlchemy and psycopg 3."""

import trial
import trial_sqlalchemy

# docs:begin
import json

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session


def publish(engine, order):
    with Session(engine) as session, session.begin():
        session.execute(text("insert into orders (id, total) values (:id, :total)"), order)
        return session.scalar(
            text("select outbox.publish(:topic, cast(:payload as jsonb), key => :key)"),
            {"topic": "shop.orders.create", "payload": json.dumps(order), "key": str(order["id"])},
        )
# docs:end


def run(statement, parameters):
    with Session(engine) as session, session.begin():
        session.execute(statement, parameters)


engine = create_engine(trial.URL.replace("postgres://", "postgresql+psycopg://"))
trial.twice(lambda order: publish(engine, order))
trial_sqlalchemy.trials(run)
