// What the types of the module allow and refuse.

import { connect, LiveError, type LiveEvent, type Subscription } from "../../../clients/javascript/index.js";

interface Order {
  total: number;
}

const live = connect({ url: "https://relay.example.com", token: async () => "t", transport: "stream", WebSocket });
const orders: Subscription = live.subscribe<Order>({ topics: ["shop.**"], since: new Date() }, async (event, token) => {
  const total: number = event.payload.total;
  const key: string | null = event.key;
  console.log(total, key, token.length);
});
orders.on("disconnected", ({ retryIn }) => retryIn.toFixed());
const stop: () => void = orders.on("error", (error) => console.log(error.code, error.final));
stop();
const reason: LiveError | undefined = await orders.done;
for await (const event of live.events<Order>({ channel: "board", snapshot: true })) {
  const typed: LiveEvent<Order> = event;
  console.log(typed.payload.total, reason);
}
live.close();

// @ts-expect-error
connect({ transport: "carrier pigeon" });
// @ts-expect-error
live.subscribe({ topics: "shop.**" }, () => {});
// @ts-expect-error
orders.on("message", () => {});
// @ts-expect-error
orders.token = "t";
