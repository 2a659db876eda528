// Publishes with TypeORM.
import * as trial from "./trial.mjs";

// docs:begin
import { DataSource } from "typeorm";

async function publish(source, order) {
  return await source.transaction(async (manager) => {
    await manager.query("insert into orders (id, total) values ($1, $2)", [order.id, order.total]);
    const [{ id }] = await manager.query("select outbox.publish($1, $2, key => $3) as id", [
      "shop.orders.create",
      order,
      order.id,
    ]);
    return id;
  });
}
// docs:end

const source = await new DataSource({ type: "postgres", url: trial.url, installExtensions: false }).initialize();
await trial.twice((order) => publish(source, order));
await trial.trials((sql, parameters) => source.transaction((manager) => manager.query(sql, parameters)), {
  order: trial.order,
  "JSON.stringify(order)": JSON.stringify(trial.order),
  "[order]": [trial.order],
});
await source.destroy();
