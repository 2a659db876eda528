-- Remove a relay that starts or stops, and relays that have not reported for a day.
--   $1 relay
with gone as (
    delete from outbox.relays as relay
     where relay.name = $1::text or relay.seen_at < now() - interval '1 day'
    returning relay.name
)
delete from outbox.relay_subscriptions as report
 where report.relay = any (array(select gone.name from gone))
