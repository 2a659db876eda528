-- Stop sending to a subscription; what it is owed goes on being recorded. True when this changed anything.
--   $1 its name
select outbox.pause($1::text);
