-- Pause a subscription. New deliveries are still recorded. True if this changed anything.
--   $1 name
select outbox.pause($1::text);
