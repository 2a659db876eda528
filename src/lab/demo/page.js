// Shows the shop's orders as their events are committed.

import { connect } from "/client.js";

const SHOWN = 12;
const RECENT = 15 * 60_000;
const element = (id) => document.getElementById(id);
const orders = new Map();
const counted = { placed: 0, paid: 0, refunded: 0, events: 0 };
let isDrawn = false;

function cell(text, style) {
  const td = document.createElement("td");
  td.textContent = text;
  if (style) td.className = style;
  return td;
}

/** A row for an order; the newest are shown. */
function draw({ order, customer = "", cents, state }) {
  const row = orders.get(order)?.row ?? document.createElement("tr");
  const total = cents === undefined ? "" : (cents / 100).toFixed(2);
  row.replaceChildren(cell(order), cell(customer), cell(total, "number"), cell(state, state));
  row.className = isDrawn ? "changed" : "";
  if (!row.isConnected) element("orders").prepend(row);
  while (element("orders").rows.length > SHOWN) element("orders").lastElementChild.remove();
  return row;
}

function take({ topic, payload }) {
  const state = topic.split(".").at(-1);
  const order = { ...orders.get(payload.order)?.order, ...payload, state };
  orders.set(payload.order, { order, row: draw(order) });
  if (orders.size > 1_000) orders.delete(orders.keys().next().value);
  for (const name of [state, "events"]) {
    counted[name] += 1;
    element(name).textContent = counted[name];
  }
}

function say(text, style) {
  element("state").textContent = text;
  element("state").className = style;
}

const wish = { topics: ["shop.order.*"], since: new Date(Date.now() - RECENT) };
const orderEvents = connect().subscribe(wish, take);
orderEvents.on("caughtUp", () => {
  isDrawn = true;
  say("live", "good");
});
orderEvents.on("disconnected", ({ retryIn }) => {
  say(`not connected, next attempt in ${Math.ceil(retryIn / 1_000)} s`, "bad");
});
orderEvents.on("error", (error) => say(error.message, "bad"));
