-- Whether the schema outbox holds outbox.migrations as we make it, and the first thing in it or in
-- outbox_internal that is not of an inbox: without that table it is somebody else's.
select exists (select from pg_attribute as column_of
                where column_of.attrelid = history.oid
                  and column_of.attname = 'checksum') as is_migrated,
       (select min(format('%I.%I', place.nspname, held.name))
          from (select class.relnamespace as schema, class.relname as name
                  from pg_class as class
                 where class.relkind in ('r', 'p', 'v', 'm', 'f')
                   and class.relname not in ('inbox', 'accepted')
                union all
                select proc.pronamespace, proc.proname
                  from pg_proc as proc
                 where proc.proname not in ('inbox_accept', 'inbox_deliver')) as held
          join pg_namespace as place on place.oid = held.schema
         where held.schema in (namespace.oid, to_regnamespace('outbox_internal'))) as holds
  from (select 'outbox' as name) as wanted
  left join pg_namespace as namespace on namespace.nspname = wanted.name
  left join pg_class as history
    on history.relnamespace = namespace.oid and history.relname = 'migrations';
