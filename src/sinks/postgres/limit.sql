-- Bound what a batch may take in another database, and make it durable there.
--   $1 limit of one statement
select set_config('statement_timeout', $1::text, true), set_config('synchronous_commit', 'on', true);
