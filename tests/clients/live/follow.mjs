// Follows events with ws as it is, and with the module by both of its ways, until the event "end"; posts what each got.

import WebSocket from "ws";

import { connect } from "../../../clients/javascript/index.js";

const { GATEWAY: url, RECEIVER: receiver, TOKEN: token } = process.env;
const topics = ["shop.orders.**"];
const ledgers = {};
const begin = (name) => (ledgers[name] ??= []);
const post = () => fetch(`${receiver}/ledgers`, { method: "POST", body: JSON.stringify(ledgers) });

function ws() {
  return new Promise((resolve) => {
    let since;
    const open = () => {
      const socket = new WebSocket(`${url.replace("http", "ws")}/v1/ws`, {
        headers: { authorization: `Bearer ${token}` },
      });
      socket.on("open", () => socket.send(JSON.stringify({ type: "subscribe", id: "a", topics, since })));
      socket.on("error", () => {});
      socket.on("close", () => ledgers.ws?.at(-1) === "end" ? resolve() : setTimeout(open, 200));
      socket.on("message", (text) => {
        const message = JSON.parse(text);
        since = message.token ?? since;
        if (message.type === "subscribed") begin("ws");
        if (message.type === "event") ledgers.ws.push(message.event.payload);
        if (message.event?.payload === "end") socket.close();
      });
    };
    open();
  });
}

async function module(transport) {
  const name = `module, ${transport}`;
  const fresh = async () => (await fetch(`${receiver}/live-token`)).text();
  const live = connect({ url, transport, WebSocket, minDelay: 100, token: fresh });
  const events = live.events({ topics, maxUnacked: 7 });
  events.subscription.on("subscribed", () => begin(name));
  for await (const event of events) {
    ledgers[name].push(event.payload);
    if (event.payload === "end") break;
  }
  live.close();
}

const posting = setInterval(post, 50);
await Promise.all([ws(), module("websocket"), module("stream")]);
clearInterval(posting);
await post();
