"""Verifies requests with the library of Standard Webhooks and reads CloudEvents with theirs: a line of JSON for each event."""

import json
import os

from cloudevents.core.bindings import http
from standardwebhooks.webhooks import Webhook

verifier = Webhook(os.environ["SECRET"])
for request in json.loads(os.environ["REQUESTS"]):
    headers, body = request["headers"], request["body"]
    data = verifier.verify(body, headers)
    kind = headers["content-type"]
    if kind.startswith("application/cloudevents-batch+json"):
        single = {"content-type": "application/cloudevents+json"}
        messages = [http.HTTPMessage(headers=single, body=json.dumps(one).encode()) for one in data]
    elif kind.startswith("application/cloudevents+json") or "ce-id" in headers:
        messages = [http.HTTPMessage(headers=headers, body=body.encode())]
    else:
        print(json.dumps({"id": headers["webhook-id"], "type": data["type"], "data": data["data"]}))
        continue
    for message in messages:
        event = http.from_http_event(message)
        print(json.dumps({"id": event.get_id(), "type": event.get_type(), "data": event.get_data()}))
