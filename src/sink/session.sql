-- Let a session write although its role or its database says otherwise, and end no transaction of
-- it. A server that is read-only as a whole stays so: it may be short of disk.
select set_config(setting.name,
                  case setting.name when 'transaction_timeout' then '0' else 'off' end,
                  false)
  from pg_catalog.pg_settings as setting
 where setting.name = 'transaction_timeout'
    or setting.name = 'default_transaction_read_only'
       and setting.setting = 'on'
       and setting.source in ('database', 'user', 'database user');
