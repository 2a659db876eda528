-- Read how far the running replays have got, and how much of each is outstanding. Counting stops
-- at $1.
--   $1 deliveries counted at most
--
-- `fresh` are those that no attempt has failed for: what waits for a retry does not keep a replay
-- from going on.
select replay.id, replay.subscription_id, replay.since, replay.settled::text as settled,
       replay.window_end::text as window_end, replay.page_after,
       replay.until_position as until, replay.position,
       replay.until as before, replay.topic,
       outbox_internal.seconds_between(replay.rate) as gap,
       extract(epoch from replay.paced_until - now())::double precision as ahead,
       outstanding.fresh, outstanding.counted
  from outbox.replays as replay
 cross join lateral (
       select count(*) filter (where counted.is_fresh) as fresh, count(*) as counted
         from (select delivery.lease_token is not null or delivery.attempt = 0 as is_fresh
                 from outbox.deliveries as delivery
                where delivery.replay_id = replay.id
                limit $1::bigint) as counted) as outstanding
 where replay.state = 'running'
   and replay.id > 0  -- with a bound on its column the index is used
 order by replay.id;
