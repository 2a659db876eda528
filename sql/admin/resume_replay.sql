-- Go on with a paused replay. Returns whether this changed anything.
--   $1 replay
select outbox.resume_replay(id => $1::bigint);
