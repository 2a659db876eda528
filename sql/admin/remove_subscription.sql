-- Delete a subscription. What it was still owed is cancelled, its dead letters stay. True when it was there.
--   $1 its name
select outbox.unsubscribe($1::text);
