-- Take a transaction id: events of transactions with a higher id have higher positions than all
-- that were drawn before this statement began.
select pg_current_xact_id()::text
