-- Wait until nothing is owed of an event, or for as long as this. Returns its status, and whether
-- this login may read what subscriptions said.
--   $1 id   $2 seconds
select outbox.wait($1::uuid, make_interval(secs => $2::double precision)) as status,
       has_table_privilege('outbox.attempts', 'select')
       and has_table_privilege('outbox.backlog', 'select') as may_read;
