// Receive webhooks and verify their signatures with the library of Standard Webhooks.
//
// npm install standardwebhooks
// PGOUTBOX_SECRET_SHOP=whsec_… node examples/receive/receive.mjs     # listens on 127.0.0.1:7412
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.PGOUTBOX_SECRET_SHOP);

createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString(); // the unchanged body, which is signed
  let event;
  try {
    event = webhook.verify(body, request.headers);
  } catch {
    response.writeHead(401).end();
    return;
  }
  // A webhook-id may arrive again: do the work and store the id in one transaction, and skip known ids.
  console.log(request.headers["webhook-id"], event.type, event.data);
  response.writeHead(204).end();
}).listen(7412, "127.0.0.1");
