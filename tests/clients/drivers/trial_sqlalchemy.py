"""The trials of SQLAlchemy as statements, either text or built from functions and tables."""

import trial
from sqlalchemy import bindparam, cast, column, func, insert, select, table, text
from sqlalchemy.dialects.postgresql import JSONB

EVENTS = table("events", column("topic"), column("payload", JSONB), schema="outbox")


class Bound(str):
    """JSON that the statement holds, not its execution."""


class Built:
    """A payload for a statement that is not text."""

    def __init__(self, payload):
        self.payload = payload


def statement(sql, topic, value):
    """A statement and its parameters."""
    if isinstance(value, Built):
        if sql.startswith("insert"):
            return insert(EVENTS).values(topic=topic, payload=value.payload), {}
        payload = cast(value.payload, JSONB) if "cast(" in sql else value.payload
        return select(func.outbox.publish(topic, payload, "a key")), {}
    if isinstance(value, Bound):
        return text(sql).bindparams(topic=topic, given=str(value)), {}
    typed = [bindparam("given", type_=JSONB)] if isinstance(value, dict) else []
    return text(sql).bindparams(*typed), {"topic": topic, "given": value}


def trials(run):
    assert text("select :payload::jsonb").compile().params == {}, "a colon after a parameter hides it"
    encoded = trial.json.dumps(trial.ORDER)
    trial.trials(
        lambda *call: run(*statement(*call)),
        {
            "json.dumps(order), given to execute": encoded,
            "json.dumps(order), given to bindparams": Bound(encoded),
            "json.dumps(order), given to func": Built(encoded),
            "order, with bindparam of type JSONB": trial.ORDER,
            "order, given to func": Built(trial.ORDER),
        },
        {"str": str(trial.KEY), "int": trial.ORDER["id"], "UUID": trial.KEY},
    )
