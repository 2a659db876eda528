-- Replays, newest first.
--   $1 subscription (null: all)   $2 id (null: all)   $3 most rows   $4 only those before this id
select status.id, status.subscription, status.rate, status.state, status.since, status.until,
       status.event as event_id, status.topic, status.progress::double precision as progress,
       status.seen, status.sent, status.waiting, status.failed, status.started_by,
       status.started_at, status.ended_at
  from outbox.replay_status as status
 where ($1::text is null or status.subscription = $1::text)
   and ($2::bigint is null or status.id = $2::bigint)
   and ($4::bigint is null or status.id < $4::bigint)
 order by status.id desc
 limit $3::bigint;
