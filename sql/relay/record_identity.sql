-- Record that the outbox belongs to this database, or why nothing may be sent from it. Changes
-- nothing in a copy: it may be another database than the one that was looked at.
--   $1 environment of this relay, where none is recorded
--   $2 why nothing may be sent; null: nothing is wrong
update outbox.identity
   set system_identifier = (select control.system_identifier from pg_control_system() as control),
       database_oid = (select base.oid from pg_database as base
                        where base.datname = current_database()),
       environment = coalesce(environment, $1::text),
       timeline = ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer,
       set_back = coalesce(set_back, $2::text),
       recorded_by = pg_current_xact_id()
 where outbox.is_written_by(identity.xmin, identity.recorded_by)
   and coalesce(system_identifier = (select control.system_identifier
                                       from pg_control_system() as control), true)
   and coalesce(database_oid = (select base.oid from pg_database as base
                                 where base.datname = current_database()), true)
