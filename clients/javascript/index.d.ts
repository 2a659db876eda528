/** Options of {@link connect}. Times are in milliseconds. */
export interface Options {
  /** Address of the relay, such as `https://relay.example.com`. In a page: its own origin by default. */
  url?: string | URL;
  /** A JWT or `http.token`, or what gets a fresh one. A function is called for each connection. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** `websocket`, the default: one connection for all subscriptions. `stream`: one by fetch for each. */
  transport?: "websocket" | "stream";
  /** Constructor of WebSockets where there is no global one, such as that of the package `ws`. */
  WebSocket?: new (url: string, protocols?: string[]) => any;
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch;
  /** Longest wait before the first attempt to reconnect; it doubles with each further one. 500 by default. */
  minDelay?: number;
  /** Longest wait before any attempt to reconnect. 30,000 by default. */
  maxDelay?: number;
  /** Silence after which the server is asked for a sign of life. 30,000 by default. */
  quiet?: number;
  /** Time for connecting, and for a sign of life. 10,000 by default. */
  timeout?: number;
  /** Default of `maxUnacked` of subscriptions: 1,000. */
  maxUnacked?: number;
}

/** What to follow: either topics or a channel. */
export interface Wish {
  /** Patterns of topics, such as `shop.**`. */
  topics?: string[];
  /** Name of a channel, which has topics and a filter of its own. */
  channel?: string;
  /** Prefixes of keys; only with topics. */
  keys?: string[];
  /** Condition in CEL; only with topics. */
  filter?: string;
  /** Token after which to go on, or a time from which to begin. Without it: from now. */
  since?: string | Date;
  /** Whether the newest event of each key comes first. */
  snapshot?: boolean;
  /** Most events that are received and not handled, from 1 on. */
  maxUnacked?: number;
}

/** An event of the log. Times are RFC 3339. */
export interface LiveEvent<Payload = unknown> {
  id: string;
  topic: string;
  key: string | null;
  payload: Payload;
  headers: Record<string, unknown>;
  organization: string | null;
  source: string | null;
  user_id: string | null;
  schema_version: number | null;
  created_at: string;
  deliver_after?: string;
}

/** Events about a subscription, with their details. */
export interface Events {
  /** The server knows it, after each connect. */
  subscribed: { token: string };
  /** All that was committed before is handled; once after each connect and each `lagging`. */
  caughtUp: { token?: string };
  /** The client is so many seconds behind, and is sent the log. */
  lagging: { behind: number };
  /** The connection is lost, or could not be made; the next attempt comes after `retryIn` milliseconds. */
  disconnected: { reason: string; retryIn: number };
  /** It has ended (`final`), or an event was left out. Without a listener it is written to the console. */
  error: LiveError;
}

/** A subscription. */
export interface Subscription {
  /** Token of the last event that was handled: `since` of the next start. */
  readonly token: string | undefined;
  /** Whether all that was committed before is handled, as far as the server says. */
  readonly isCaughtUp: boolean;
  /** Why it has ended by itself. */
  readonly error: LiveError | undefined;
  /** Resolves when it has ended, with the reason, or without one after `close`. Never rejects. */
  readonly done: Promise<LiveError | undefined>;
  /** Listens. Returns a function that stops listening. */
  on<Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => void): () => void;
  /** Ends it. Events that wait are not handled. */
  close(): void;
}

/** The events of a subscription, one after the other. Throws its {@link LiveError}. */
export interface EventIterator<Payload = unknown> extends AsyncIterableIterator<LiveEvent<Payload>> {
  readonly subscription: Subscription;
  /** Token of the event that was returned last. */
  readonly token: string | undefined;
}

/** Connections to a relay. */
export interface Live {
  /**
   * Gives each event to `handler`, in order, and waits for what it returns. If the handler fails, the subscription
   * ends with the code `handler_failed`, and its token stays before the event.
   */
  subscribe<Payload = unknown>(
    wish: Wish,
    handler: (event: LiveEvent<Payload>, token: string) => unknown,
  ): Subscription;
  /** The events as an async iterable. An event counts as handled when the next one is asked for. */
  events<Payload = unknown>(wish: Wish): EventIterator<Payload>;
  /** Ends all subscriptions and connections. */
  close(): void;
}

/** Why a subscription ended, or what it left out. */
export class LiveError extends Error {
  constructor(code: string, reason: string, final?: boolean, cause?: unknown);
  /** A stable word, such as `forbidden`, `token_too_old` or `handler_failed`. */
  readonly code: string;
  /** Whether the subscription has ended. If not, an event was left out. */
  readonly final: boolean;
}

/** Follows events of a relay. Connects with the first subscription. */
export function connect(options?: Options): Live;
