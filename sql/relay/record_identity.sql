-- Record that the outbox belongs to this database, or why nothing may be sent from it. Changes
-- nothing in a copy: it may be another database than the one that was looked at.
--   $1 environment of this relay, where none is recorded
--   $2 why nothing may be sent; null: nothing is wrong
update outbox.identity as identity
   set system_identifier = here.system_identifier, database_oid = here.database_oid,
       timeline = here.timeline,
       environment = coalesce(identity.environment, $1::text),
       set_back = coalesce(identity.set_back, $2::text)
  from outbox.here as here
 where outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
   and coalesce(identity.system_identifier = here.system_identifier, true)
   and coalesce(identity.database_oid = here.database_oid, true)
