-- Tables (outbox.*) whose rows cannot be deleted or changed: a publication sends these, and the
-- table has nothing by which a subscriber of it could find the row.
select format('%I.%I', namespace.nspname, class.relname) as "table",
       min(publication.pubname) as publication
  from pg_class as class
  join pg_namespace as namespace on namespace.oid = class.relnamespace
  join pg_publication as publication on publication.pubupdate or publication.pubdelete
 where namespace.nspname = 'outbox'
   and class.relkind = 'r'
   and class.relpersistence = 'p'
   and not exists (select from pg_index as index
                    where index.indrelid = class.oid
                      and case class.relreplident
                               when 'd' then index.indisprimary
                               when 'i' then index.indisreplident
                               else false end)
   and class.relreplident <> 'f'
   and (publication.puballtables
        or exists (select from pg_publication_tables as published
                    where published.pubname = publication.pubname
                      and published.schemaname = 'outbox'
                      and published.tablename in (
                              select parent.relname from pg_class as parent
                               where parent.oid = class.oid
                                  or parent.oid in (select relid
                                                      from pg_partition_ancestors(class.oid)))))
 group by namespace.nspname, class.relname
 order by 1;
