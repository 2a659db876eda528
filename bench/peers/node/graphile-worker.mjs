// graphile-worker: `fill` adds the backlog, `run` works it off until SIGTERM.

import { Logger, makeWorkerUtils, run } from "graphile-worker";

import { backlog } from "./event.mjs";
import { poster } from "./post.mjs";

const { DATABASE_URL: connectionString, RECEIVER_URL } = process.env;
const CONCURRENT = 32;
// A line for each job costs more than the job.
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

async function fill() {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.migrate();
  for (const events of backlog()) {
    await utils.addJobs(events.map((payload) => ({ identifier: "post", payload })));
  }
  await utils.release();
}

async function work() {
  const post = poster(RECEIVER_URL, CONCURRENT);
  const runner = await run({
    taskList: { post: (payload) => post(JSON.stringify(payload)) },
    preset: {
      worker: {
        connectionString,
        logger,
        concurrentJobs: CONCURRENT,
        maxPoolSize: CONCURRENT + 2,
        localQueue: { size: 1000 },
        completeJobBatchDelay: 50,
        failJobBatchDelay: 50,
      },
    },
  });
  await runner.promise;
}

await (process.argv[2] === "fill" ? fill() : work());
