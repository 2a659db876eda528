-- End a replay. Returns whether this changed anything.
--   $1 replay
select outbox.cancel_replay(id => $1::bigint);
