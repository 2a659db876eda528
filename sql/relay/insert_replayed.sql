-- Queue deliveries of a replay, and move on from where its events were read. If another relay was
-- faster, or the replay is paused or has ended, nothing is written and no row is returned.
--   $1 replay
--   $2 position up to which the log was read before
--   $3 position up to which it is read now
--   $4 events of the span that were looked at
--   $5 positions of the events that are wanted   $6 created_at of these events, in the same order
--   $7 seconds between two deliveries; null: all are due now
--
-- With a rate, `paced_until` is when the next delivery may be due: the due times go on where those
-- of the part before ended, whichever relay wrote it. One that comes late catches up on a tenth of
-- a second, so that a stop is followed by no burst.
-- A row that somebody else has locked is left alone, as if another relay had been faster.
with held as materialized (
    select replay.ctid as address
      from outbox.replays as replay
     where replay.id = $1::bigint
       and replay.position = $2::bigint
       and replay.state = 'running'
       for no key update skip locked
),
moved as (
    update outbox.replays as replay
       set position = $3::bigint,
           seen = replay.seen + $4::bigint,
           queued = replay.queued + cardinality($5::bigint[]),
           paced_until = greatest(replay.paced_until, now() - interval '100 milliseconds')
                         + make_interval(secs => cardinality($5::bigint[])
                                                 * $7::double precision)
     where replay.ctid = any (array(select held.address from held))
    returning replay.id, replay.subscription_id, replay.paced_until
),
inserted as (
    insert into outbox.deliveries (
        position, created_at, subscription_id, owed_since, due_at, replay_id)
    select past.position, past.created_at, moved.subscription_id, now(),
           coalesce(moved.paced_until
                    - make_interval(secs => (cardinality($5::bigint[]) - past.n + 1)
                                            * $7::double precision),
                    now()),
           moved.id
      from moved
     cross join unnest($5::bigint[], $6::timestamptz[]) with ordinality
           as past (position, created_at, n)
     order by past.n
)
select moved.id from moved
