// Publishes with Knex.
import * as trial from "./trial.mjs";

// docs:begin
import knex from "knex";

async function publish(db, order) {
  return await db.transaction(async (transaction) => {
    await transaction("orders").insert(order);
    const { rows } = await transaction.raw("select outbox.publish(?, ?, key => ?) as id", [
      "shop.orders.create",
      order,
      order.id,
    ]);
    return rows[0].id;
  });
}
// docs:end

const db = knex({ client: "pg", connection: trial.url });
await trial.twice((order) => publish(db, order));
await trial.trials(
  (sql, parameters) => db.transaction((transaction) => transaction.raw(sql, parameters)),
  { order: trial.order, "JSON.stringify(order)": JSON.stringify(trial.order), "[order]": [trial.order] },
  { topic: "?", given: "?" },
);
await db.destroy();
