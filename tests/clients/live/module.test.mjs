// The module against a server that is played by the test, with a clock that the test moves.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { connect } from "../../../clients/javascript/index.js";

let sockets;

class FakeSocket {
  sent = [];
  isClosed = false;
  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    sockets.push(this);
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close() {
    this.isClosed = true;
  }
  open() {
    this.onopen();
    return this;
  }
  say(...messages) {
    for (const message of messages) this.onmessage?.({ data: JSON.stringify(message) });
  }
  event(n, id = "s1") {
    this.say({ type: "event", id, token: `t${n}`, event: { id: `e${n}`, payload: n } });
  }
  end(code = 1006, reason = "") {
    this.onclose({ code, reason });
  }
}

const options = (more) => ({ url: "https://relay/base", WebSocket: FakeSocket, ...more });
const settle = async () => {
  for (let n = 0; n < 20; n++) await Promise.resolve();
};
/** Begins to follow, up to the confirmation. */
async function follow(wish = {}, handler = () => {}, more = {}) {
  const live = connect(options(more));
  const subscription = live.subscribe({ topics: ["a.*"], ...wish }, handler);
  await settle();
  const socket = sockets.at(-1).open();
  socket.say({ type: "subscribed", id: "s1", token: "t0" });
  return { live, subscription, socket };
}

beforeEach(() => {
  sockets = [];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(Math, "random", () => 0.5);
});
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

test("it sends the token as a subprotocol, and asks for a new one at each connect", async () => {
  let n = 0;
  const { socket } = await follow({}, undefined, { token: async () => `jwt${++n}` });
  assert.equal(socket.url, "wss://relay/base/v1/ws");
  assert.deepEqual(socket.protocols, ["pgoutbox", "bearer.jwt1"]);
  socket.end(1008, "the token has expired");
  mock.timers.tick(250);
  await settle();
  assert.deepEqual(sockets[1].protocols, ["pgoutbox", "bearer.jwt2"]);
});

test("waits grow up to a limit, each a random part of it, and begin again after a success", async () => {
  const { subscription, socket } = await follow();
  const waits = [];
  subscription.on("disconnected", ({ retryIn }) => waits.push(retryIn));
  socket.end();
  for (let n = 0; n < 8; n++) {
    mock.timers.tick(waits.at(-1) - 1);
    await settle();
    assert.equal(sockets.length, n + 1, "not too early");
    mock.timers.tick(1);
    await settle();
    assert.equal(sockets.length, n + 2);
    sockets.at(-1).end();
  }
  assert.deepEqual(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
  mock.timers.tick(15_000);
  await settle();
  sockets.at(-1).open().say({ type: "subscribed", id: "s1", token: "t0" });
  sockets.at(-1).end();
  assert.equal(waits.at(-1), 250);
});

test("it comes back when it was asked to", async () => {
  const { subscription, socket } = await follow();
  const waits = [];
  subscription.on("disconnected", ({ retryIn }) => waits.push(retryIn));
  socket.end(1001, '{"retry_after_ms":4321}');
  assert.deepEqual(waits, [4_321]);
});

test("it goes on behind the last event that the handler was given, and repeats none", async () => {
  const seen = [];
  let free;
  const handler = async (event) => {
    seen.push(event.payload);
    if (event.payload === 2) await new Promise((resolve) => (free = resolve));
  };
  const { subscription, socket } = await follow({}, handler);
  for (const n of [1, 2, 3]) socket.event(n);
  await settle();
  assert.deepEqual([seen, subscription.token], [[1, 2], "t1"]);
  socket.end();
  mock.timers.tick(250);
  await settle();
  sockets[1].open();
  assert.equal(sockets[1].sent[0].since, "t2");
  sockets[1].say({ type: "subscribed", id: "s1", token: "t2" });
  free();
  await settle();
  assert.equal(sockets[1].sent.length, 1, "what came on another connection is not acknowledged");
  sockets[1].event(3);
  await settle();
  assert.deepEqual([seen, subscription.token], [[1, 2, 3], "t3"]);
});

test("a quiet subscription goes on behind what it has caught up with", async () => {
  const { socket } = await follow();
  socket.say({ type: "caught_up", id: "s1", token: "t9" });
  await settle();
  socket.end();
  mock.timers.tick(250);
  await settle();
  assert.equal(sockets[1].open().sent[0].since, "t9");
});

test("a snapshot that begins again does not repeat what was given", async () => {
  const seen = [];
  const { socket } = await follow({ snapshot: true }, (event) => seen.push(event.payload));
  assert.equal(socket.sent[0].snapshot, true);
  const state = (n) => ({ type: "event", id: "s1", token: `snapshot.${n}`, event: { id: `e${n}`, payload: n } });
  socket.say(state(1), state(2));
  await settle();
  socket.end();
  mock.timers.tick(250);
  await settle();
  sockets[1].open();
  assert.equal(sockets[1].sent[0].since, "snapshot.2");
  sockets[1].say(state(1), state(2), state(3));
  await settle();
  assert.deepEqual(seen, [1, 2, 3]);
});

test("events are acknowledged when they are handled, in parts", async () => {
  const waiting = [];
  const { socket } = await follow({ maxUnacked: 4 }, () => new Promise((resolve) => waiting.push(resolve)));
  const acks = () => socket.sent.filter(({ type }) => type === "ack").map(({ token }) => token);
  assert.equal(socket.sent[0].max_unacked, 4);
  for (const n of [1, 2, 3]) socket.event(n);
  await settle();
  assert.deepEqual(acks(), []);
  for (const expected of [[], ["t2"], ["t2", "t3"]]) {
    waiting.shift()();
    await settle();
    assert.deepEqual(acks(), expected);
  }
});

test("a connection on which nothing comes is replaced, and one that answers is not", async () => {
  const { socket } = await follow();
  mock.timers.tick(30_000); // what was said on opening counts
  mock.timers.tick(30_000);
  assert.equal(socket.sent.at(-1).type, "ping");
  socket.say({ type: "pong" });
  mock.timers.tick(10_000);
  assert.equal(socket.isClosed, false);
  mock.timers.tick(30_000);
  mock.timers.tick(10_000);
  assert.equal(socket.isClosed, true);
  mock.timers.tick(250);
  await settle();
  assert.equal(sockets.length, 2);
});

test("a final code ends the subscription, unavailable is tried again, an event left out is told", async () => {
  const { live, subscription, socket } = await follow();
  const errors = [];
  subscription.on("error", ({ code, final }) => errors.push([code, final]));
  socket.say({ type: "error", id: "s1", code: "filter_failed", reason: "x" });
  socket.say({ type: "error", id: "s1", code: "unavailable", reason: "x" });
  mock.timers.tick(250);
  assert.deepEqual(socket.sent.filter(({ type }) => type === "subscribe").map(({ since }) => since), [undefined, "t0"]);
  const other = live.subscribe({ channel: "board" }, () => {});
  other.on("error", () => {});
  socket.say({ type: "error", id: "s2", code: "forbidden", reason: "no" });
  assert.deepEqual([(await other.done).code, other.error.final], ["forbidden", true]);
  socket.say({ type: "subscribed", id: "s1", token: "t0" }, { type: "error", id: "s1", code: "token_too_old", reason: "x" });
  assert.equal((await subscription.done).code, "token_too_old");
  assert.deepEqual(errors, [["filter_failed", false], ["token_too_old", true]]);
  assert.equal(socket.isClosed, true, "nobody follows any more");
  mock.timers.tick(60_000);
  await settle();
  assert.equal(sockets.length, 1);
});

test("a handler that fails ends its subscription before the event", async () => {
  const { subscription, socket } = await follow({}, (event) => {
    if (event.payload === 2) throw new Error("no");
  });
  subscription.on("error", () => {});
  for (const n of [1, 2, 3]) socket.event(n);
  assert.equal((await subscription.done).code, "handler_failed");
  assert.equal(subscription.token, "t1");
});

test("an iterator hands over one event at a time, and is over when it is closed", async () => {
  const live = connect(options());
  const events = live.events({ topics: ["a.*"] });
  await settle();
  const socket = sockets[0].open();
  socket.say({ type: "subscribed", id: "s1", token: "t0" });
  for (const n of [1, 2]) socket.event(n);
  assert.equal((await events.next()).value.payload, 1);
  await settle();
  assert.deepEqual([events.subscription.token, events.token], ["t0", "t1"]);
  assert.equal((await events.next()).value.payload, 2);
  assert.equal(events.subscription.token, "t1");
  const next = events.next();
  live.close();
  assert.equal((await next).done, true);
});

test("a stream has its token in a header, is read in parts, and goes on with its last id", async () => {
  const asked = [];
  const whole = new TextEncoder().encode(
    "retry: 1000\r\n\r\nevent: subscribed\ndata: {\"type\":\"subscribed\",\r\ndata: \"token\":\"t0\"}\n\n:\n\n" +
    "id: t1\ndata: {\"type\":\"event\",\"token\":\"t1\",\"event\":{\"id\":\"e1\",\"payload\":\"é\"}}\n\nretry: 77\n\n",
  );
  const parts = Array.from(whole, (byte) => Uint8Array.of(byte));
  const fetch = async (url, { headers, signal }) => {
    asked.push({ url, headers });
    if (asked.length === 3) return Response.json({ detail: "gone", code: "token_too_old" }, { status: 410 });
    if (asked.length === 2) return Response.json({}, { status: 503, headers: { "retry-after": "2" } });
    const body = new ReadableStream({ start: (to) => (parts.forEach((part) => to.enqueue(part)), to.close()) });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
  const live = connect(options({ transport: "stream", fetch, token: "jwt" }));
  const [seen, waits, began] = [[], [], []];
  const subscription = live.subscribe({ topics: ["a.*", "b"] }, (event) => seen.push(event.payload));
  subscription.on("disconnected", ({ retryIn }) => waits.push(retryIn));
  subscription.on("error", () => {});
  subscription.on("subscribed", ({ token }) => began.push(token));
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  for (const wait of [77, 2_000]) {
    for (let n = 0; n < 1_000 && waits.at(-1) !== wait; n++) await turn();
    assert.equal(waits.at(-1), wait);
    mock.timers.tick(wait);
  }
  assert.equal((await subscription.done).code, "token_too_old");
  assert.deepEqual([began, seen], [["t0"], ["é"]]);
  assert.equal(asked[0].url, "https://relay/base/v1/stream?topics=a.*%2Cb");
  assert.equal(asked[0].headers.authorization, "Bearer jwt");
  assert.deepEqual(asked.map(({ headers }) => headers["last-event-id"]), [undefined, "t1", "t1"]);
});

test("what cannot be is refused at once", () => {
  assert.throws(() => connect(options({ transport: "pigeon" })), /transport/);
  assert.throws(() => connect({ url: "ftp://relay", transport: "stream" }), /url/);
  const live = connect(options());
  assert.throws(() => live.subscribe({}, () => {}), /topics/);
  assert.throws(() => live.subscribe({ topics: "a" }, () => {}), /topics/);
  assert.throws(() => live.subscribe({ topics: ["a"], snapshot: true, since: "t" }, () => {}), /snapshot/);
  assert.throws(() => live.subscribe({ topics: ["a"], maxUnacked: 0 }, () => {}), /maxUnacked/);
  assert.throws(() => live.subscribe({ topics: ["a"] }), /handler/);
});
