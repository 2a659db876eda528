// Publish from Node, in the transaction that writes the data.
//
// npm install pg
// DATABASE_URL=postgres://… node examples/publish/publish.mjs
import pg from "pg";

const order = { id: 1004, total: 700 };
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
try {
  await client.query("begin");
    // … your statements, in the same transaction …
  const { rows } = await client.query("select outbox.publish($1, $2, key => $3) as id", [
    "shop.orders.create",
    JSON.stringify(order),
    String(order.id),
  ]);
  await client.query("commit");
  console.log(rows[0].id);
} catch (error) {
  await client.query("rollback");
  throw error;
} finally {
  await client.end();
}
