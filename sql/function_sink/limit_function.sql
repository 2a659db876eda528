-- Limit the time of a function call, and commit its effect synchronously, like a verdict.
--   $1 statement timeout
select set_config('statement_timeout', $1::text, true),
       set_config('idle_in_transaction_session_timeout', '15s', true),
       case when current_setting('transaction_timeout', true) is not null
            then set_config('transaction_timeout', '0', true) end,
       set_config('synchronous_commit', 'on', true);
