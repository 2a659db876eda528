-- What a server may be used for. Settings of the login and of the database say nothing about it.
select pg_catalog.pg_is_in_recovery() as is_standby,
       exists (select from pg_catalog.pg_settings as setting
                where setting.name = 'default_transaction_read_only'
                  and setting.setting = 'on'
                  and setting.source not in ('database', 'user', 'database user'))
           as is_read_only;
