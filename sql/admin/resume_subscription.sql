-- Resume a subscription that is paused, gone or disabled. True if this changed anything.
--   $1 name
select outbox.resume($1::text);
