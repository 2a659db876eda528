-- A replay has read the log to its end, and nothing of it is outstanding: it is done.
--   $1 replay   $2 position up to which it was read
update outbox.replays as replay
   set state = 'done', ended_at = clock_timestamp()
 where replay.id = $1::bigint
   and replay.position = $2::bigint
   and replay.state = 'running'
   and not exists (select from outbox.deliveries as delivery
                    where delivery.replay_id = $1::bigint)
returning replay.id
