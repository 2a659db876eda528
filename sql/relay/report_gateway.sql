-- Record that this process serves live clients. Relays are notified of one that is new, so that
-- they tell of news at once.
--   $1 name   $2 version   $3 connections of clients
with known as (
    select gateway.started_at
      from outbox.gateways as gateway
     where gateway.name = $1::text
       and gateway.seen_at > now() - interval '15 seconds'
),
reported as (
    insert into outbox.gateways as gateway (name, version, connections)
    values ($1::text, $2::text, $3::integer)
    on conflict (name) do update
       set version = excluded.version, connections = excluded.connections,
           seen_at = excluded.seen_at,
           started_at = coalesce((select known.started_at from known), excluded.started_at)
)
select pg_notify('outbox_doorbell', 'gateway ' || $1::text)
 where not exists (select from known)
