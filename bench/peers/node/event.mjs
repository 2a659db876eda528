// The events of a backlog, some thousand at a time: what a job carries is the body that is posted.

const CHUNK = 5_000;

export function* backlog() {
  const { JOBS, PADDING, TIMESTAMP, TOPIC } = process.env;
  const padding = "x".repeat(Number(PADDING));
  for (let first = 1; first <= Number(JOBS); first += CHUNK) {
    const length = Math.min(CHUNK, Number(JOBS) - first + 1);
    yield Array.from({ length }, (_, i) => ({ type: TOPIC, timestamp: TIMESTAMP, data: { n: first + i, padding } }));
  }
}
