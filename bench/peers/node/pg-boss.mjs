// pg-boss: `fill` adds the backlog, `run` works it off until SIGTERM.

import { PgBoss } from "pg-boss";

import { backlog } from "./event.mjs";
import { poster } from "./post.mjs";

const { DATABASE_URL: connectionString, RECEIVER_URL } = process.env;
const QUEUE = "post";

const boss = new PgBoss({ connectionString });
boss.on("error", (error) => console.error(error));
await boss.start();

if (process.argv[2] === "fill") {
  await boss.createQueue(QUEUE);
  for (const events of backlog()) {
    await boss.insert(QUEUE, events.map((data) => ({ data })));
  }
  await boss.stop();
} else {
  const post = poster(RECEIVER_URL, 64);
  await boss.work(QUEUE, { batchSize: 2000, localConcurrency: 3, burstWhenBatchFull: true }, async (jobs) => {
    await Promise.all(jobs.map(({ data }) => post(JSON.stringify(data))));
  });
  process.once("SIGTERM", async () => {
    await boss.stop();
    process.exit();
  });
}
