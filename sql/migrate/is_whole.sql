-- Whether all of these objects are in the schema.
--   $1 names of tables and views
--   $2 names of functions
select not exists (select from unnest($1::text[]) as wanted (name)
                    where to_regclass('outbox.' || wanted.name) is null)
       and not exists (select from unnest($2::text[]) as wanted (name)
                        where not exists (select from pg_proc as found
                                           where found.proname = wanted.name
                                             and found.pronamespace
                                                 in (to_regnamespace('outbox'),
                                                     to_regnamespace('outbox_internal'))))
