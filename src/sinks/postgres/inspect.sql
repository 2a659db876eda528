-- Whether the login may insert into a table or call a function of another database; null if it does not
-- exist. $1 table or null $2 function or null
select case when $1::text is not null then has_table_privilege(to_regclass($1::text), 'insert')
            else has_function_privilege(to_regproc($2::text), 'execute') and to_regclass('outbox.accepted') is not null end as usable;
