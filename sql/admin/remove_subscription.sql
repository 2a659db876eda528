-- Delete a subscription and its pending deliveries. Dead letters stay. True if it existed.
--   $1 name
select outbox.unsubscribe($1::text);
