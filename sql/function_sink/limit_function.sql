-- Bound what a function of the application may take, and make its effect as durable as the verdict it stands for.
--   $1 limit of one statement
select set_config('statement_timeout', $1::text, true),
       set_config('idle_in_transaction_session_timeout', '15s', true),
       set_config('synchronous_commit', 'on', true);
