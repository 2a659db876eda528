// Writes to captured tables with node-postgres, like an application: insert, update, nothing, delete.
import assert from "node:assert";
import pg from "pg";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

async function inTransaction(work) {
  const client = await pool.connect();
  try {
    await client.query("begin");
    const result = await work(client);
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback");
    throw error;
  } finally {
    client.release();
  }
}

const [first, second] = await inTransaction(async (client) => {
  const customer = await client.query("insert into customers (name, email) values ($1, $2) returning id", ["Ada", "ada@example.com"]);
  const orders = await client.query({
    name: "order", // a prepared statement
    text: "insert into orders (customer_id, total) select $1, unnest($2::numeric[]) returning id, customer_id",
    values: [customer.rows[0].id, ["12.50", "3"]],
  });
  return orders.rows;
});

await inTransaction(async (client) => {
  await client.query("update customers set name = $1 where id = $2", ["Ada L.", first.customer_id]);
  await client.query("update orders set total = $1 where id = $2", ["13", first.id]);
});
await pool.query("update customers set email = $1", ["ada@example.org"]); // is excluded
await pool.query("update orders set total = $1 where id = $2", ["3.00", second.id]); // the same number
await assert.rejects(
  inTransaction(async (client) => {
    await client.query("update customers set name = 'nobody'");
    throw new Error("changed my mind");
  }),
  /changed my mind/,
);

await inTransaction(async (client) => {
  const deleted = await client.query("delete from orders where customer_id = $1", [first.customer_id]);
  assert.strictEqual(deleted.rowCount, 2);
  await client.query("delete from customers where id = $1", [first.customer_id]);
});
await pool.end();
