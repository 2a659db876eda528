-- Read which database this is, and which one the outbox belongs to.
--   $1 this relay
--
-- A restored dump is noticed by the row's own transaction id: the restore has written it, and not
-- the transaction that it names.
select here.system_identifier as found_system_identifier,
       here.database_oid::bigint as found_database_oid, here.timeline as found_timeline,
       pg_is_in_recovery() as is_in_recovery,
       identity.system_identifier, identity.database_oid::bigint as database_oid,
       identity.environment, identity.timeline, identity.set_back,
       not outbox_internal.is_written_by(identity.xmin, identity.recorded_by) as is_restored,
       cursor.step,
       pg_snapshot_xmax(cursor.settled) > pg_snapshot_xmax(pg_current_snapshot())
           as transactions_went_back,
       cursor.low > (select sequence.last_value from outbox.events_position_seq as sequence)
           as positions_went_back,
       (select relay.seen_at from outbox.relays as relay where relay.name = $1::text) as reported_at
  from outbox.identity as identity
 cross join (select one.step, one.settled, one.low
               from outbox.cursor as one
              order by one.step desc limit 1) as cursor
 cross join outbox.here as here
