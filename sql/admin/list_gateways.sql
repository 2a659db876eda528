-- Processes with live clients that reported within the last minute.
select gateway.name as gateway,
       gateway.version,
       gateway.started_at,
       gateway.seen_at,
       gateway.connections
  from outbox.gateways as gateway
 where gateway.seen_at > now() - interval '1 minute'
 order by gateway.name;
