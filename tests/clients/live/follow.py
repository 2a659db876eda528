"""Follows events with the library websockets until the event "end"; posts what it got."""

import asyncio
import json
import os
import urllib.request

import websockets

GATEWAY = os.environ["GATEWAY"].replace("http", "ws") + "/v1/ws"
HEADERS = {"Authorization": "Bearer " + os.environ["TOKEN"]}
ledger = []


def post():
    body = json.dumps({"websockets": ledger}).encode()
    urllib.request.urlopen(os.environ["RECEIVER"] + "/ledgers", body, timeout=10).close()


async def follow(since):
    """Follows on one connection. Returns the last token when it has ended."""
    try:
        async with websockets.connect(GATEWAY, additional_headers=HEADERS, proxy=None) as socket:
            subscribe = {"type": "subscribe", "id": "a", "topics": ["shop.orders.**"]}
            await socket.send(json.dumps(subscribe | ({"since": since} if since else {})))
            async for text in socket:
                message = json.loads(text)
                since = message.get("token", since)
                if message["type"] == "event":
                    ledger.append(message["event"]["payload"])
                post()
                if ledger[-1:] == ["end"]:
                    return since
    except (OSError, websockets.WebSocketException):
        pass
    return since


async def main():
    since = None
    while ledger[-1:] != ["end"]:
        since = await follow(since)
        await asyncio.sleep(0.2)


asyncio.run(main())
