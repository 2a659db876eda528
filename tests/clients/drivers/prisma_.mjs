// Publishes with Prisma, whose queries go through node-postgres.
import { createRequire } from "node:module";
import { PrismaPg } from "@prisma/adapter-pg";
import * as trial from "./trial.mjs";

// docs:begin
async function publish(prisma, order) {
  return await prisma.$transaction(async (transaction) => {
    await transaction.$executeRaw`insert into orders (id, total) values (${order.id}, ${order.total})`;
    const [{ id }] = await transaction.$queryRaw`
      select outbox.publish(${"shop.orders.create"}, ${order}, key => ${order.id}) as id`;
    return id;
  });
}
// docs:end

// What `prisma generate` writes for a schema without models. The command itself downloads a program.
const require = createRequire(import.meta.url);
const compiler = "@prisma/client/runtime/query_compiler_fast_bg.postgresql";
const PrismaClient = require("@prisma/client/runtime/client.js").getPrismaClient({
  activeProvider: "postgresql",
  clientVersion: require("@prisma/client/package.json").version,
  compilerWasm: {
    getRuntime: async () => require(`${compiler}.js`),
    getQueryCompilerWasmModule: async () =>
      new WebAssembly.Module(Buffer.from(require(`${compiler}.wasm-base64.js`).wasm, "base64")),
    importName: "./query_compiler_fast_bg.js",
  },
  inlineSchema: 'datasource db {\n provider = "postgresql"\n}\n',
  parameterizationSchema: { strings: [], graph: "AAAA" },
  previewFeatures: [],
  runtimeDataModel: { models: {}, enums: {}, types: {} },
});
const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: trial.url }) });
await trial.twice((order) => publish(prisma, order));
await trial.trials(
  (sql, parameters) => prisma.$transaction((transaction) => transaction.$queryRawUnsafe(sql, ...parameters)),
  { order: trial.order, "JSON.stringify(order)": JSON.stringify(trial.order), "[order]": [trial.order] },
);
await prisma.$disconnect();
