-- Read the pauses that destinations asked for, with the seconds that are left of each, the
-- generation of subscriptions at which they were true, and the time of the newest pause that was
-- recorded. There is always at least one row.
select generation.value as generation,
       (select max(recorded.asked_at) from outbox.pauses as recorded) as newest,
       pause.subscription_id,
       extract(epoch from pause.until - now())::double precision as seconds
  from outbox.generation as generation
  left join outbox.asked_pauses as pause on true
