// The same as webhook_reads.py with the libraries of Node.

import cloudevents from "cloudevents";
import { Webhook } from "standardwebhooks";

const verifier = new Webhook(process.env.SECRET);
for (const { headers, body } of JSON.parse(process.env.REQUESTS)) {
  const data = verifier.verify(body, headers);
  if (headers["content-type"].startsWith("application/cloudevents") || headers["ce-id"]) {
    for (const event of [cloudevents.HTTP.toEvent({ headers, body })].flat()) {
      console.log(JSON.stringify({ id: event.id, type: event.type, data: event.data }));
    }
  } else {
    console.log(JSON.stringify({ id: headers["webhook-id"], type: data.type, data: data.data }));
  }
}
