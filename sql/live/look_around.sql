-- What a gateway learns before it reads the log for live clients.
--
-- `low` is a fact that stays true: events of transactions with a higher id than `low_xid` have
-- higher positions. The cursor's row is found at the right end of its index. On a standby there is
-- no timeline.
select pg_current_snapshot()::text as snapshot,
       clock_timestamp()           as now,
       cursor.low,
       cursor.low_xid::text        as low_xid,
       here.system_identifier,
       here.database_oid::bigint   as database_oid,
       coalesce(here.timeline, 0)  as timeline,
       (select generation.value from outbox.generation) as generation,
       (select token_key.key from outbox.token_key)     as token_key,
       (select sequence.last_value
          from outbox.events_position_seq as sequence)  as drawn
  from (select one.low, one.low_xid
          from outbox.cursor as one
         order by one.step desc
         limit 1) as cursor
 cross join outbox.here as here
