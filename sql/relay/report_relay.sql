-- Record that this relay runs, and what it did for its subscriptions since it started.
--   $1 relay
--   $2 version
--   $3 seconds since it started
--   $4 permits
--   $5 deliveries in flight
--   $6 subscriptions; $7 to $11 are in their order
--   $7 attempts that succeeded
--   $8 attempts that failed
--   $9 states of the breakers
--   $10 events whose match or filter could not be evaluated
--   $11 the last of these errors
--   $12 deliveries leased and not begun
--   $13 deliveries answered and not recorded
--   $14 seconds since it makes no progress; null while it does
--   $15 the error that it meets
--   $16 attempts that succeeded in the last 15 minutes, in the order of $6
with seen as (
    insert into outbox.relays as relay (
        name, version, started_at, seen_at, permits, in_flight, leased_ahead, unsettled,
        no_progress_since, no_progress_why)
    values (
        $1::text, $2::text, now() - make_interval(secs => $3::double precision), now(),
        $4::integer, $5::integer, $12::integer, $13::integer,
        now() - make_interval(secs => $14::double precision), $15::text)
    on conflict (name) do update
       set version = excluded.version, started_at = excluded.started_at,
           seen_at = greatest(excluded.seen_at, relay.seen_at),
           permits = excluded.permits, in_flight = excluded.in_flight,
           leased_ahead = excluded.leased_ahead,
           unsettled = excluded.unsettled,
           no_progress_since = excluded.no_progress_since,
           no_progress_why = excluded.no_progress_why
    returning seen_at
),
reported as (
    insert into outbox.relay_subscriptions as report (
        relay, subscription_id, delivered, failed, breaker, filter_errors, last_filter_error,
        delivered_lately, reported_at)
    select $1::text, did.subscription_id, did.delivered, did.failed, did.breaker, did.filter_errors,
           did.last_filter_error, did.delivered_lately, now()
      from unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::text[],
                  $16::bigint[])
           as did (subscription_id, delivered, failed, breaker, filter_errors, last_filter_error,
                   delivered_lately)
    on conflict (relay, subscription_id) do update
       set delivered = excluded.delivered, failed = excluded.failed, breaker = excluded.breaker,
           filter_errors = excluded.filter_errors, last_filter_error = excluded.last_filter_error,
           delivered_lately = excluded.delivered_lately, reported_at = excluded.reported_at
)
select seen.seen_at, now() as now,
       (select count(*)
          from outbox.relays as other
         where other.name <> $1::text
           and other.seen_at > now() - interval '30 seconds') as others,
       (select count(*)
          from outbox.gateways as gateway
         where gateway.name <> $1::text  -- one in this process is told without the database
           and gateway.seen_at > now() - interval '15 seconds') as gateways
  from seen
