"""What the Python scripts beside this file share: the order, its repetition, and the trials of parameters."""

import json
import os
import re
import uuid

URL = os.environ["DATABASE_URL"]
ORDER = {"id": int(os.environ["ORDER"]), "total": 2500}
KEY = uuid.UUID(int=ORDER["id"])
# A named or positional mark stands in their place.
CALLS = {
    "payload": (
        "select outbox.publish(:topic, :given)",
        "select outbox.publish(:topic, cast(:given as jsonb))",
        "insert into outbox.events (topic, payload) values (:topic, :given)",
    ),
    "key": (
        "select outbox.publish(:topic, '{}', key => :given)",
        "select outbox.publish(:topic, '{}', key => cast(:given as text))",
        "insert into outbox.events (topic, payload, key) values (:topic, '{}', :given)",
    ),
}


def say(**line):
    print(json.dumps(line), flush=True)


def twice(publish):
    """The commit of the second transaction fails, because this order exists. Its event must not exist either."""
    say(id=str(publish(ORDER)))
    try:
        publish(ORDER)
    except Exception as error:
        say(repeated=str(error))


def trials(run, payloads, keys, marks=None):
    """Runs each call with each value by `run(sql, topic, value)`, in a transaction of its own."""
    for argument, values in ("payload", payloads), ("key", keys):
        for given, value in values.items():
            for number, sql in enumerate(CALLS[argument]):
                topic = uuid.uuid4().hex
                if marks:
                    sql = re.sub(":(topic|given)", lambda mark: marks[mark[1]], sql)
                try:
                    run(sql, topic, value)
                    error = None
                except Exception as failure:
                    error = str(failure)
                say(argument=argument, given=given, call=number, topic=topic, error=error)
