-- Read what a relay must know about a connection before it uses the database.
select pg_is_in_recovery() as in_recovery,
       current_setting('transaction_read_only')::boolean as read_only,
       (select role.rolsuper from pg_roles as role where role.rolname = current_user) as superuser,
       current_setting('server_version_num')::integer as server_version,
       to_regclass('outbox.cursor') is not null as migrated,
       case when to_regclass('outbox.cursor') is not null
            then has_table_privilege('outbox.cursor', 'update')
                 and has_table_privilege('outbox.deliveries', 'insert') end as permitted,
       extract(epoch from clock_timestamp())::double precision as clock
