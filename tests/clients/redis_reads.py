"""Reads a stream as a member of a group, with redis-py: prints a line of JSON for each entry, in order.

REDIS_URL, STREAM, COUNT: how many entries there must be.
"""

import json
import os

import redis

client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
stream, count = os.environ["STREAM"], int(os.environ["COUNT"])
client.xgroup_create(stream, "readers", id="0")
[(_, entries)] = client.xreadgroup("readers", "one", {stream: ">"}, count=count + 1, block=5000)
assert len(entries) == count, f"{len(entries)} entries instead of {count}"
for entry, fields in entries:
    assert client.xack(stream, "readers", entry) == 1
    print(json.dumps(fields))
