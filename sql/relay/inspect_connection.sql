-- Read what a relay must know about a connection before it uses the database.
select pg_is_in_recovery() as in_recovery,
       -- A pooler's transactions say that they write, which a server may forbid as a whole.
       current_setting('transaction_read_only')::boolean
       or exists (select from pg_settings as setting
                   where setting.name = 'default_transaction_read_only'
                     and setting.setting = 'on'
                     and setting.source not in ('database', 'user', 'database user'))
           as read_only,
       (select role.rolsuper from pg_roles as role where role.rolname = current_user) as superuser,
       current_setting('server_version_num')::integer as server_version,
       to_regclass('outbox.cursor') is not null as migrated,
       case when to_regclass('outbox.cursor') is not null
            then has_table_privilege('outbox.cursor', 'update')
                 and has_table_privilege('outbox.deliveries', 'insert') end as permitted,
       has_function_privilege('pg_catalog.pg_control_system()', 'execute') as may_identify,
       extract(epoch from clock_timestamp())::double precision as clock
