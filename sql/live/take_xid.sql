-- Take a transaction id: whatever was drawn before this statement began, events of transactions with
-- a higher id have higher positions.
select pg_current_xact_id()::text
