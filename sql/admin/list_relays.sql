-- Relays that reported within the last minute.
select relay.name,
       relay.version,
       relay.started_at,
       relay.seen_at,
       relay.permits,
       relay.leased_ahead,
       relay.in_flight,
       relay.unsettled,
       relay.no_progress_since,
       relay.no_progress_why
  from outbox.relays as relay
 where relay.seen_at > now() - interval '1 minute'
 order by relay.name;
