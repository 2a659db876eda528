// What the Node scripts beside this file share: the order, its repetition, and the trials of parameters.
import { randomUUID } from "node:crypto";

export const url = process.env.DATABASE_URL;
export const order = { id: Number(process.env.ORDER), total: 2500 };

// A positional mark stands in the place of each name.
const calls = {
  payload: [
    "select outbox.publish(:topic, :given)",
    "select outbox.publish(:topic, cast(:given as jsonb))",
    "insert into outbox.events (topic, payload) values (:topic, :given)",
  ],
  key: [
    "select outbox.publish(:topic, '{}', key => :given)",
    "select outbox.publish(:topic, '{}', key => cast(:given as text))",
    "insert into outbox.events (topic, payload, key) values (:topic, '{}', :given)",
  ],
};

const say = (line) => console.log(JSON.stringify(line));

// The commit of the second transaction fails, because this order exists. Its event must not exist either.
export async function twice(publish) {
  say({ id: await publish(order) });
  try {
    await publish(order);
  } catch (error) {
    say({ repeated: error.message });
  }
}

// Runs each call with each value by `run(sql, [topic, value])`, in a transaction of its own.
export async function trials(run, payloads, marks = { topic: "$1", given: "$2" }) {
  const keys = { string: String(order.id), number: order.id };
  for (const [argument, values] of [["payload", payloads], ["key", keys]]) {
    for (const [given, value] of Object.entries(values)) {
      for (const [call, sql] of calls[argument].entries()) {
        const topic = randomUUID();
        let error = null;
        try {
          await run(sql.replace(/:(topic|given)/g, (_, name) => marks[name]), [topic, value]);
        } catch (failure) {
          error = failure.message;
        }
        say({ argument, given, call, topic, error });
      }
    }
  }
}
