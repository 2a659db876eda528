// Publishes with node-postgres.
import * as trial from "./trial.mjs";

// docs:begin
import pg from "pg";

async function publish(client, order) {
  await client.query("begin");
  try {
    await client.query("insert into orders (id, total) values ($1, $2)", [order.id, order.total]);
    const { rows } = await client.query("select outbox.publish($1, $2, key => $3) as id", [
      "shop.orders.create",
      order,
      order.id,
    ]);
    await client.query("commit");
    return rows[0].id;
  } catch (error) {
    await client.query("rollback");
    throw error;
  }
}
// docs:end

const client = new pg.Client({ connectionString: trial.url });
await client.connect();
await trial.twice((order) => publish(client, order));
await trial.trials((sql, parameters) => client.query(sql, parameters), {
  order: trial.order,
  "JSON.stringify(order)": JSON.stringify(trial.order),
  "[order]": [trial.order],
});
await client.end();
