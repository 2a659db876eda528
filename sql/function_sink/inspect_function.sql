-- Whether this login may call a function and use its schema. An error if it does not exist or does
-- not accept an event. $1 function
select (inspected.call is not null
        and has_function_privilege(inspected.function, 'execute')
        and has_schema_privilege((select proc.pronamespace
                                    from pg_catalog.pg_proc as proc
                                   where proc.oid = inspected.function),
                                 'usage')) as may_call
  from (select outbox_internal.function_call($1::text) as call,
               case when $1::text like '%(%' then to_regprocedure($1::text)::oid
                    else to_regproc($1::text)::oid end as function
        offset 0) as inspected
