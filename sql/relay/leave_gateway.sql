-- Remove a gateway that stops, and gateways that have not reported for a day.
--   $1 name
delete from outbox.gateways as gateway
 where gateway.name = $1::text or gateway.seen_at < now() - interval '1 day'
