"""Reads a stream of JetStream through a pull consumer, with nats-py: prints a line of JSON for each message, in order.

NATS_URL, STREAM, COUNT: how many messages there must be.
"""

import asyncio
import json
import os

import nats


async def main():
    count = int(os.environ["COUNT"])
    client = await nats.connect(os.environ["NATS_URL"], connect_timeout=5, allow_reconnect=False)
    consumer = await client.jetstream().pull_subscribe("", durable="readers", stream=os.environ["STREAM"])
    left = count
    while left:
        for message in await consumer.fetch(min(left, 100), timeout=5):
            await message.ack_sync()
            print(json.dumps({"subject": message.subject, "headers": message.headers, "payload": message.data.decode()}))
            left -= 1
    assert (await consumer.consumer_info()).num_pending == 0, "there are more"
    await client.close()


asyncio.run(main())
