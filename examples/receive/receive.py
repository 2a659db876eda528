"""Receive webhooks and verify their signatures with the library of Standard Webhooks.

pip install standardwebhooks
PGOUTBOX_SECRET_SHOP=whsec_… python examples/receive/receive.py     # listens on 127.0.0.1:7412
"""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["PGOUTBOX_SECRET_SHOP"])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))  # the bytes as they came: they are what is signed
        try:
            event = webhook.verify(body, dict(self.headers))
        except WebhookVerificationError:
            return self.answer(401)
        # A webhook-id may arrive again: do the work and store the id in one transaction, and skip known ids.
        print(self.headers["webhook-id"], event["type"], event["data"], flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", 7412), Receiver).serve_forever()
