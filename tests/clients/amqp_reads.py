"""Prints every message of a queue as a line of JSON: message_id, type, headers, body."""

import json
import os

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ["URL"] + "/%2f"))
channel = connection.channel()
while True:
    method, properties, body = channel.basic_get(os.environ["QUEUE"], auto_ack=True)
    if method is None:
        break
    assert properties.delivery_mode == 2
    print(
        json.dumps(
            {
                "message_id": properties.message_id,
                "type": properties.type,
                "headers": properties.headers,
                "body": body.decode(),
            }
        )
    )
connection.close()
