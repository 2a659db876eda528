-- Limit the time of a batch in another database, and commit it synchronously.
--   $1 statement timeout
select set_config('statement_timeout', $1::text, true),
       set_config('idle_in_transaction_session_timeout', '15s', true),
       set_config('synchronous_commit', 'on', true);
