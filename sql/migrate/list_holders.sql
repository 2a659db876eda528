-- List whose transactions hold locks of tables of the outbox, or wait for them, at most five. A
-- migration that did not get its locks says so. What others do is hidden from most logins, but not
-- who they are.
select format('%s of %s (%s)', session.pid, coalesce(session.usename, '?'),
              coalesce(nullif(session.application_name, ''), 'no application name')) as holder
  from pg_stat_activity as session
 where session.pid <> pg_backend_pid()
   and exists (select
                 from pg_locks as held
                 join pg_class as class on class.oid = held.relation
                where held.pid = session.pid
                  and held.database = (select base.oid from pg_database as base
                                        where base.datname = current_database())
                  and class.relnamespace = (
                          select history.relnamespace from pg_class as history
                           where history.oid = to_regclass('outbox.migrations')))
 order by session.pid
 limit 5
