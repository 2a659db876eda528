-- Who owns the schemas outbox and outbox_internal and what is in them (outbox.*), the owner of most
-- first.
select pg_get_userbyid(owned.owner) as owner, count(*) as objects,
       (array_agg(owned.object order by owned.object))[1] as example
  from (select namespace.nspowner as owner, format('schema %I', namespace.nspname) as object
          from pg_namespace as namespace
         where namespace.nspname in ('outbox', 'outbox_internal')
        union all
        select class.relowner, format('%I.%I', namespace.nspname, class.relname)
          from pg_class as class
          join pg_namespace as namespace on namespace.oid = class.relnamespace
         where namespace.nspname in ('outbox', 'outbox_internal')
           and class.relkind in ('r', 'p', 'v', 'S')
        union all
        select proc.proowner, format('%I.%I', namespace.nspname, proc.proname)
          from pg_proc as proc
          join pg_namespace as namespace on namespace.oid = proc.pronamespace
         where namespace.nspname in ('outbox', 'outbox_internal')) as owned
 group by owned.owner
 order by count(*) desc, owned.owner;
