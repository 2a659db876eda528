-- Pause a replay. Returns whether this changed anything.
--   $1 replay
select outbox.pause_replay(id => $1::bigint);
