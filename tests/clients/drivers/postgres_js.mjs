// Publishes with postgres.js.
import * as trial from "./trial.mjs";

// docs:begin
import postgres from "postgres";

async function publish(sql, order) {
  return await sql.begin(async (sql) => {
    await sql`insert into orders ${sql(order)}`;
    const [{ id }] = await sql`
      select outbox.publish(${"shop.orders.create"}, ${order}, key => ${order.id}) as id`;
    return id;
  });
}
// docs:end

const sql = postgres(trial.url);
await trial.twice((order) => publish(sql, order));
await trial.trials((text, parameters) => sql.begin((sql) => sql.unsafe(text, parameters)), {
  order: trial.order,
  "sql.json(order)": sql.json(trial.order),
  "JSON.stringify(order)": JSON.stringify(trial.order),
  "[order]": [trial.order],
});
await sql.end();
