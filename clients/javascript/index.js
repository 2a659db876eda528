// Follows the events of a pgoutbox relay: each committed event once, in order, whatever happens to connections.
// Has no dependencies and needs no build. The relay serves this file as /client.js.
//
// A subscription is a token: the place behind the last event. When a connection ends, the next one continues with
// the token of the last event that was given to the handler; what was received but not given to it is sent again.

/** Codes after which a subscription cannot go on. */
const FINAL = new Set([
  "bad_message", "bad_topics", "bad_filter", "bad_token", "forbidden", "unknown_channel", "channels_only",
  "too_many_subscriptions", "token_too_old", "other_database", "snapshot_too_large", "unknown_type",
]);
/** Codes that say that an event was left out. The subscription goes on. */
const LEFT_OUT = new Set(["unreadable_event", "filter_failed"]);
/** Begins the tokens of the events of a snapshot: who returns with one is sent a new snapshot. */
const SNAPSHOT = "snapshot.";
/** Longest time in milliseconds that a server may ask a client to stay away. */
const LONGEST_HINT = 300_000;
const EVENTS = ["subscribed", "caughtUp", "lagging", "disconnected", "error"];
const DEFAULTS = {
  transport: "websocket", minDelay: 500, maxDelay: 30_000, quiet: 30_000, timeout: 10_000, maxUnacked: 1_000,
};

/** Why a subscription ended, or what it left out. */
export class LiveError extends Error {
  constructor(code, reason, final = true, cause = undefined) {
    super(reason, cause === undefined ? undefined : { cause });
    this.name = "LiveError";
    this.code = code;
    this.final = final;
  }
}

/** Follows events of the relay at `options.url`. Connects with the first subscription. */
export function connect(options = {}) {
  return new Live(options);
}

class Live {
  #settings;
  #followers = new Map();
  #socket;
  #next = 1;
  #closed = false;

  constructor(options) {
    const settings = { ...DEFAULTS };
    for (const [name, value] of Object.entries(options)) if (value !== undefined) settings[name] = value;
    settings.url ??= globalThis.location?.origin;
    if (settings.url === undefined) throw new TypeError("url: name the address of the relay");
    settings.fetch ??= globalThis.fetch?.bind(globalThis);
    settings.WebSocket ??= globalThis.WebSocket;
    if (!["websocket", "stream"].includes(settings.transport)) {
      throw new TypeError("transport: use 'websocket' or 'stream'");
    }
    if (settings.transport === "websocket" && settings.WebSocket === undefined) {
      throw new TypeError("WebSocket: there is none here; pass one, such as that of ws, or use transport 'stream'");
    }
    this.#settings = settings;
    this.#socket = settings.transport === "websocket" ? new Socket(settings) : undefined;
    endpoint(settings.url, "");
  }

  /** Gives each event to `handler`, one after the other, and waits for it. */
  subscribe(wish, handler) {
    if (this.#closed) throw new TypeError("the connection is closed");
    if (typeof handler !== "function") throw new TypeError("handler: pass a function");
    const follower = new Follower(`s${this.#next++}`, checked(wish, this.#settings), handler);
    const transport = this.#socket ?? new Stream(this.#settings, follower);
    follower.onEnd = () => {
      this.#followers.delete(follower.id);
      transport.remove(follower);
    };
    this.#followers.set(follower.id, follower);
    transport.add(follower);
    return follower.subscription;
  }

  /** The events as an async iterable. An event counts as handled when the next one is asked for. */
  events(wish) {
    let handled = () => {};
    let offered;
    let asked;
    const subscription = this.subscribe(wish, (value, token) => new Promise((resolve) => {
      offered = { value, token, resolve };
      asked?.();
    }));
    let ended = false;
    subscription.done.then(() => {
      ended = true;
      asked?.();
    });
    const events = {
      subscription,
      token: undefined,
      async next() {
        handled();
        while (offered === undefined && !ended) await new Promise((resolve) => (asked = resolve));
        if (offered === undefined) {
          if (subscription.error) throw subscription.error;
          return { done: true, value: undefined };
        }
        handled = offered.resolve;
        events.token = offered.token;
        const { value } = offered;
        offered = undefined;
        return { done: false, value };
      },
      async return() {
        subscription.close();
        handled();
        offered = undefined;
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]: () => events,
    };
    // The iterator throws the error.
    subscription.on("error", () => {});
    return events;
  }

  /** Ends all subscriptions and connections. */
  close() {
    this.#closed = true;
    for (const follower of [...this.#followers.values()]) follower.end();
  }
}

/** What a caller sees of a subscription. */
class Subscription {
  #follower;

  constructor(follower) {
    this.#follower = follower;
    this.done = new Promise((resolve) => (follower.resolveDone = resolve));
  }

  get token() {
    return this.#follower.token;
  }

  get isCaughtUp() {
    return this.#follower.isCaughtUp;
  }

  get error() {
    return this.#follower.error;
  }

  on(name, listener) {
    if (!EVENTS.includes(name)) throw new TypeError(`there is no event ${name}; use ${EVENTS.join(", ")}`);
    const listeners = this.#follower.listeners[name];
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  close() {
    this.#follower.end();
  }
}

/** A subscription: what it wants, where it is, and the events that wait for the handler. */
class Follower {
  token = undefined; // of the last event that was handled
  isCaughtUp = false;
  isConfirmed = false; // by the server, on this connection
  failures = 0; // of subscribing, since it last succeeded
  error = undefined;
  hasEnded = false;
  listeners = Object.fromEntries(EVENTS.map((name) => [name, new Set()]));
  #wish;
  #handler;
  #resume; // token of the last event that was given to the handler
  #queue = [];
  #isBusy = false;
  #link; // the connection that it is on
  #handled = { count: 0, token: undefined }; // not acknowledged yet
  #snapshot; // ids of the events of a snapshot that were given to the handler
  #makeRoom;

  constructor(id, wish, handler) {
    this.id = id;
    this.#wish = wish;
    this.#handler = handler;
    this.#resume = wish.since;
    this.subscription = new Subscription(this);
  }

  /** What to ask the server for, from where it is now. */
  get request() {
    const { topics, channel, keys, filter, snapshot, maxUnacked } = this.#wish;
    const begin = this.#resume === undefined ? { snapshot } : { since: this.#resume };
    return { topics, channel, keys, filter, ...begin, max_unacked: maxUnacked };
  }

  /** Asks on a new connection. What was received from an earlier one and is not begun is asked for again. */
  begin(link) {
    this.#queue.length = 0;
    this.#link = link;
    this.#handled = { count: 0, token: undefined };
    this.isConfirmed = false;
    this.isCaughtUp = false;
    this.#makeRoom?.();
  }

  /** The connection is lost; in `retryIn` milliseconds comes the next. */
  lose(reason, retryIn) {
    this.begin(undefined);
    this.emit("disconnected", { reason, retryIn });
  }

  /** Takes in a message of the server that is no error. */
  take(message) {
    if (this.hasEnded) return;
    if (message.type === "subscribed") {
      this.isConfirmed = true;
      this.failures = 0;
      this.#resume ??= message.token;
      this.token ??= message.token;
      this.emit("subscribed", { token: message.token });
    } else if (["event", "caught_up", "lagging"].includes(message.type)) {
      this.#queue.push(message);
      this.#work();
    }
  }

  /** Waits while as many events wait for the handler as may. */
  async room() {
    while (!this.hasEnded && this.#queue.length >= this.#wish.maxUnacked) {
      await new Promise((resolve) => (this.#makeRoom = resolve));
    }
  }

  end(error = undefined) {
    if (this.hasEnded) return;
    this.hasEnded = true;
    this.error = error;
    this.#queue.length = 0;
    this.#makeRoom?.();
    this.onEnd();
    if (error) this.emit("error", error);
    this.resolveDone(error);
  }

  emit(name, detail) {
    if (name === "error" && this.listeners.error.size === 0) console.error(detail);
    for (const listener of [...this.listeners[name]]) {
      try {
        listener(detail);
      } catch (error) {
        console.error(error);
      }
    }
  }

  async #work() {
    if (this.#isBusy) return;
    this.#isBusy = true;
    while (!this.hasEnded && this.#queue.length > 0) {
      const message = this.#queue.shift();
      if (message.type === "event") await this.#handle(message);
      else this.#note(message);
      if (this.#queue.length < this.#wish.maxUnacked / 2) this.#makeRoom?.();
    }
    this.#acknowledge();
    this.#isBusy = false;
  }

  async #handle({ event, token }) {
    const link = this.#link;
    this.#resume = token;
    if (token.startsWith(SNAPSHOT)) {
      this.#snapshot ??= new Set();
    } else {
      this.#snapshot = undefined;
    }
    // A snapshot that was interrupted begins again.
    if (!this.#snapshot?.has(event.id)) {
      this.#snapshot?.add(event.id);
      try {
        await this.#handler(event, token);
      } catch (error) {
        this.end(new LiveError("handler_failed", `the handler failed: ${error?.message ?? error}`, true, error));
        return;
      }
    }
    this.token = token;
    if (link !== this.#link) return;
    this.#handled = { count: this.#handled.count + 1, token };
    if (this.#handled.count >= this.#wish.maxUnacked / 2) this.#acknowledge();
  }

  #acknowledge() {
    const { count, token } = this.#handled;
    this.#handled = { count: 0, token: undefined };
    if (count > 0 && !this.hasEnded) this.#link?.acknowledge?.(this.id, token);
  }

  #note({ type, token, behind }) {
    if (type === "lagging") {
      this.isCaughtUp = false;
      this.emit("lagging", { behind });
      return;
    }
    if (token !== undefined) this.token = this.#resume = token;
    this.#snapshot = undefined;
    if (this.isCaughtUp) return;
    this.isCaughtUp = true;
    this.emit("caughtUp", { token });
  }
}

/** One WebSocket for all subscriptions. */
class Socket {
  #settings;
  #followers = new Map();
  #link; // the connection that is open or being opened
  #failures = 0; // of connecting, since a subscription last succeeded
  #waiting; // cancels the wait for the next connection

  constructor(settings) {
    this.#settings = settings;
  }

  add(follower) {
    this.#followers.set(follower.id, follower);
    if (this.#link?.isOpen) this.#subscribe(follower);
    else if (!this.#link && !this.#waiting) this.#connect();
  }

  remove(follower) {
    this.#followers.delete(follower.id);
    follower.cancelRetry?.();
    if (this.#followers.size === 0) this.#leave();
    else if (this.#link?.isOpen) this.#link.send({ type: "unsubscribe", id: follower.id });
  }

  #leave() {
    this.#waiting?.();
    this.#waiting = undefined;
    const link = this.#link;
    this.#link = undefined;
    link?.close();
  }

  async #connect() {
    const { settings, link } = { settings: this.#settings, link: new Link() };
    this.#link = link;
    const lost = (reason, hint) => this.#lose(link, reason, hint);
    link.timer = setTimeout(() => lost("the connection was not opened in time"), settings.timeout);
    try {
      const token = await credential(settings);
      if (this.#link !== link) return;
      const protocols = token ? ["pgoutbox", `bearer.${token}`] : ["pgoutbox"];
      link.socket = new settings.WebSocket(endpoint(settings.url, "v1/ws", "ws"), protocols);
    } catch (error) {
      lost(error?.message ?? String(error));
      return;
    }
    link.socket.onopen = () => {
      link.isOpen = true;
      link.watch(settings, lost);
      for (const follower of this.#followers.values()) this.#subscribe(follower);
    };
    link.socket.onmessage = ({ data }) => {
      link.wasHeard = true;
      const message = parsed(data);
      if (this.#link === link && message !== undefined) this.#take(message);
    };
    link.socket.onerror = () => {};
    link.socket.onclose = ({ code, reason }) => {
      const text = String(reason ?? "");
      // The largest message by far is the one that subscribes.
      if (code === 1009) this.#refuseLargest();
      lost(`closed with ${code}${text && !text.startsWith("{") ? `: ${text}` : ""}`, parsed(text)?.retry_after_ms);
    };
  }

  #subscribe(follower) {
    follower.cancelRetry?.();
    follower.begin(this.#link);
    this.#link.send({ type: "subscribe", id: follower.id, ...follower.request });
  }

  #take(message) {
    const follower = this.#followers.get(message.id);
    if (message.type === "subscribed") this.#failures = 0;
    if (message.type !== "error") {
      follower?.take(message);
      return;
    }
    const { code, reason } = message;
    if (follower === undefined) {
      if (message.id === undefined) for (const one of this.#followers.values()) report(one, code, reason);
      return;
    }
    // An acknowledgement may cross the end of what it is about.
    if (follower.isConfirmed && ["bad_token", "unknown_id"].includes(code)) return;
    if (LEFT_OUT.has(code)) {
      report(follower, code, reason);
    } else if (FINAL.has(code)) {
      follower.end(new LiveError(code, reason));
    } else {
      const wait = delay(follower.failures++, undefined, this.#settings);
      follower.lose(reason, wait);
      follower.cancelRetry = after(wait, () => this.#link?.isOpen && this.#subscribe(follower));
    }
  }

  #refuseLargest() {
    const size = (one) => JSON.stringify(one.request).length;
    const pending = [...this.#followers.values()].filter((one) => !one.isConfirmed);
    const largest = pending.sort((one, other) => size(other) - size(one))[0];
    largest?.end(new LiveError("bad_message", "the subscription is larger than a message may be"));
  }

  #lose(link, reason, hint) {
    if (this.#link !== link) return;
    this.#link = undefined;
    link.close();
    if (this.#followers.size === 0) return;
    const wait = delay(this.#failures++, hint, this.#settings);
    this.#waiting = after(wait, () => {
      this.#waiting = undefined;
      this.#connect();
    });
    for (const follower of [...this.#followers.values()]) {
      follower.cancelRetry?.();
      follower.lose(reason, wait);
    }
  }
}

/** One connection by WebSocket. */
class Link {
  socket = undefined;
  isOpen = false;
  wasHeard = false;
  timer = undefined;

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  acknowledge(id, token) {
    if (this.isOpen) this.send({ type: "ack", id, token });
  }

  /** Asks for a sign of life when nothing was heard for a while. */
  watch(settings, lost) {
    clearTimeout(this.timer);
    this.wasHeard = false;
    const look = () => {
      if (this.wasHeard) return this.watch(settings, lost);
      this.send({ type: "ping" });
      this.timer = setTimeout(() => {
        if (this.wasHeard) this.watch(settings, lost);
        else lost("the server does not answer");
      }, settings.timeout);
    };
    this.timer = setTimeout(look, settings.quiet);
  }

  close() {
    clearTimeout(this.timer);
    this.isOpen = false;
    if (this.socket === undefined) return;
    // A connection that is gone may take minutes to say so.
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }
}

/** A stream of server-sent events for one subscription, by fetch, so that the token is a header. */
class Stream {
  #settings;
  #follower;
  #abort = new AbortController();
  #failures = 0;
  #hint;
  #wake;

  constructor(settings, follower) {
    this.#settings = settings;
    this.#follower = follower;
  }

  async add(follower) {
    while (!follower.hasEnded) {
      this.#hint = undefined;
      this.#abort = new AbortController();
      const reason = await this.#read().catch((error) => {
        const cause = this.#abort.signal.aborted ? this.#abort.signal.reason : error;
        return cause?.message ?? String(cause);
      });
      this.#abort.abort();
      if (follower.hasEnded) return;
      const wait = delay(this.#failures++, this.#hint, this.#settings);
      follower.lose(reason, wait);
      await new Promise((resolve) => {
        const cancel = after(wait, resolve);
        this.#wake = () => {
          cancel();
          resolve();
        };
      });
    }
  }

  remove() {
    this.#abort.abort();
    this.#wake?.();
  }

  /** Reads one connection to its end. Returns why it ended. */
  async #read() {
    const { settings, follower, abort } = { settings: this.#settings, follower: this.#follower, abort: this.#abort };
    const giveUp = (reason) => abort.abort(new Error(reason));
    let timer = setTimeout(() => giveUp("the connection was not opened in time"), settings.timeout);
    try {
      const { url, headers } = address(settings.url, follower.request);
      const token = await credential(settings);
      if (token) headers.authorization = `Bearer ${token}`;
      if (follower.hasEnded) return "";
      const response = await settings.fetch(url, { headers, signal: abort.signal, cache: "no-store" });
      if (!response.ok) return await this.#refused(response);
      if (!response.headers.get("content-type")?.startsWith("text/event-stream") || !response.body) {
        throw new Error("the answer is not a stream of events");
      }
      follower.begin({});
      const messages = [];
      const parse = parser(messages, (milliseconds) => (this.#hint = milliseconds));
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      for (;;) {
        clearTimeout(timer);
        timer = setTimeout(() => giveUp("nothing was heard for too long"), settings.quiet + settings.timeout);
        const { done, value } = await reader.read();
        clearTimeout(timer);
        if (done) return "the stream has ended";
        parse(decoder.decode(value, { stream: true }));
        for (const message of messages.splice(0)) {
          this.#take(message);
          await follower.room();
        }
        if (follower.hasEnded) return "";
      }
    } catch (error) {
      // A hint is for who was sent away; a broken connection waits as long as it has to.
      this.#hint = undefined;
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  #take(message) {
    if (message.type === "subscribed") this.#failures = 0;
    if (message.type !== "error") this.#follower.take(message);
    else if (FINAL.has(message.code)) this.#follower.end(new LiveError(message.code, message.reason));
    else if (LEFT_OUT.has(message.code)) report(this.#follower, message.code, message.reason);
  }

  /** A refusal before the stream: a problem (RFC 9457), perhaps of a proxy. */
  async #refused(response) {
    const problem = (await response.json().catch(() => undefined)) ?? {};
    const { code = { 400: "bad_message", 403: "forbidden" }[response.status], detail = response.statusText } = problem;
    if (FINAL.has(code)) this.#follower.end(new LiveError(code, detail));
    const after = response.headers.get("retry-after");
    const seconds = Number(after ?? NaN);
    const wait = Number.isNaN(seconds) ? Date.parse(after) - Date.now() : seconds * 1_000;
    this.#hint = wait >= 0 ? wait : undefined;
    return `${response.status}: ${detail}`;
  }
}

/** Milliseconds until the next attempt: exponential, with full jitter, and not before the server's hint. */
function delay(failures, hint, { minDelay, maxDelay }) {
  const jittered = Math.random() * Math.min(maxDelay, minDelay * 2 ** Math.min(failures, 30));
  if (typeof hint !== "number" || !(hint >= 0)) return jittered;
  return Math.min(failures === 0 ? hint : Math.max(hint, jittered), LONGEST_HINT);
}

/** Calls `then` after a time, or soon after the network has come back. Returns a function that cancels it. */
function after(milliseconds, then) {
  let timer = setTimeout(run, milliseconds);
  function run() {
    cancel();
    then();
  }
  function hurry() {
    clearTimeout(timer);
    timer = setTimeout(run, Math.random() * Math.min(1_000, milliseconds));
  }
  function cancel() {
    clearTimeout(timer);
    globalThis.removeEventListener?.("online", hurry);
  }
  globalThis.addEventListener?.("online", hurry);
  return cancel;
}

function report(follower, code, reason) {
  follower.emit("error", new LiveError(code, reason, false));
}

async function credential({ token }) {
  return typeof token === "function" ? await token() : token;
}

function checked(wish, settings) {
  const { topics, channel, keys, since, snapshot } = wish ?? {};
  if ((topics === undefined) === (channel === undefined)) throw new TypeError("topics: name the topics, or a channel");
  for (const [name, list] of [["topics", topics], ["keys", keys]]) {
    if (list !== undefined && !Array.isArray(list)) throw new TypeError(`${name}: pass an array`);
  }
  if (snapshot && since !== undefined && since !== null) throw new TypeError("snapshot: use either since or snapshot");
  if (settings.transport === "stream" && keys?.some((key) => key.includes(","))) {
    throw new TypeError("keys: one has a comma; use transport 'websocket'");
  }
  const maxUnacked = wish.maxUnacked ?? settings.maxUnacked;
  if (!Number.isInteger(maxUnacked) || maxUnacked < 1) throw new TypeError("maxUnacked: use a number from 1 on");
  const begin = since instanceof Date ? since.toISOString() : since ?? undefined;
  return { ...wish, since: begin, snapshot: snapshot ? true : undefined, maxUnacked };
}

/** The address of a path of the relay, which may itself be below a path. */
function endpoint(base, path, scheme = "http") {
  const url = new URL(base, globalThis.location?.href);
  const isSecure = ["https:", "wss:"].includes(url.protocol);
  if (!isSecure && !["http:", "ws:"].includes(url.protocol)) throw new TypeError("url: use http:// or https://");
  const origin = `${scheme}${isSecure ? "s" : ""}://${url.host}`;
  return new URL(path, `${origin}${url.pathname.replace(/\/?$/, "/")}`).href;
}

function address(base, { topics, channel, keys, filter, since, snapshot }) {
  const url = new URL(endpoint(base, "v1/stream"));
  const parameters = { topics: topics?.join(","), channel, keys: keys?.join(","), filter, snapshot };
  const headers = { accept: "text/event-stream" };
  // A token is long, and a header does not show in logs; a time is no token.
  if (since?.includes(":")) parameters.since = since;
  else if (since !== undefined) headers["last-event-id"] = since;
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) url.searchParams.set(name, value);
  }
  return { url: url.href, headers };
}

/** Reads server-sent events: pushes the data of each as JSON. */
function parser(messages, retry) {
  let rest = "";
  let data = [];
  return (text) => {
    rest += text;
    // The \n of a \r\n may be in the next part.
    const held = rest.endsWith("\r") ? "\r" : "";
    const lines = rest.slice(0, rest.length - held.length).split(/\r\n|\r|\n/);
    rest = lines.pop() + held;
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === "") {
        const message = data.length > 0 ? parsed(data.join("\n")) : undefined;
        if (message !== undefined) messages.push(message);
        data = [];
      } else if (field === "data") {
        data.push(value);
      } else if (field === "retry" && /^\d+$/.test(value)) {
        retry(Number(value));
      }
    }
  };
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}
