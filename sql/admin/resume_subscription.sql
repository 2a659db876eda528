-- Send again to a subscription that was paused, gone or disabled. True when this changed anything.
--   $1 its name
select outbox.resume($1::text);
