-- Publish with SQL, for example from psql, in the transaction that writes the data.
-- psql "$DATABASE_URL" -f examples/publish/publish.sql
begin;
-- … your statements, in the same transaction …
select outbox.publish('shop.orders.create', '{"id": 1006, "total": 300}', key => '1006');
commit;
