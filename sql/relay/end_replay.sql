-- A replay has read the log to its end, and nothing of it is outstanding: it is done. A row that
-- somebody else has locked is left for the next look.
--   $1 replay   $2 position up to which it was read
with held as materialized (
    select replay.ctid as address
      from outbox.replays as replay
     where replay.id = $1::bigint
       and replay.position = $2::bigint
       and replay.state = 'running'
       and not exists (select from outbox.deliveries as delivery
                        where delivery.replay_id = $1::bigint)
       for no key update skip locked
)
update outbox.replays as replay
   set state = 'done', ended_at = clock_timestamp()
 where replay.ctid = any (array(select held.address from held))
returning replay.id
