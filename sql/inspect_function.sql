-- Refuse a function that is not there, does not take an event, or may not be called by this login.
--   $1 function
select outbox.function_call($1::text),
       has_function_privilege(case when $1::text like '%(%' then to_regprocedure($1::text)::oid else to_regproc($1::text)::oid end, 'execute') as may_call;
