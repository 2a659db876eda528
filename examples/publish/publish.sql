-- Publish from psql, or from any SQL: the event is written in the transaction that writes the data.
-- psql "$DATABASE_URL" -f examples/publish/publish.sql
begin;
-- … the statements that write your data stand here …
select outbox.publish('shop.orders.create', '{"id": 1006, "total": 300}', key => '1006');
commit;
